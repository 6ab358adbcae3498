"""Which answers the page holds: disagreements, a sample drawn before verdicts, within bounds, all of it visible."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import Spec, add_attacks, write_run

from geomsafe.reports import analyze, browser
from geomsafe.reports.collect import collect
from geomsafe.reports.page import render
from geomsafe.reports.visible import inert, visible

Row = dict[str, Any]
SPEC = Spec("one", lr=6e-4, prompts=60)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "runs", SPEC)
    add_attacks(run, SPEC)
    return run


def _each(run: Path, change: Callable[[Row], object], suite: str = "*") -> None:
    for path in (run / "evaluations").glob(f"*--{suite}.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            change(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _held(run: Path, out: Path) -> dict[str, Any]:
    held: dict[str, Any] = collect([run], out)["completions"]
    return held


def _names(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(row["key"], row["suite"], row["id"]) for row in rows]


def _agree(row: Row) -> None:
    row["verdicts"] = {"keyword-29": row["verdicts"]["keyword-29"]}


def test_every_answer_is_held_where_there_is_room(run: Path, tmp_path: Path) -> None:
    held = _held(run, tmp_path / "report")
    # theta_0 and the last iterate, on four suites and under two attacks; checkpoints are no arms.
    assert held["total"] == len(held["rows"]) == 2 * 6 * 60
    assert held["disagreements"] == held["kept_disagreements"] > 0
    assert len(set(_names(held["rows"]))) == held["total"]


def test_a_prompt_that_stands_twice_in_a_suite_has_two_answers(run: Path, tmp_path: Path) -> None:
    _each(run, lambda row: row.update(id="same", completion=f"answer {row['index']}"), "harmful")
    held = [row for row in _held(run, tmp_path / "report")["rows"] if row["suite"] == "harmful"]
    assert sorted(row["completion"] for row in held) == sorted(f"answer {index}" for index in range(60) for _ in "AB")


def test_disagreements_come_first_and_the_rest_is_drawn_without_verdicts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "MOST_ROWS", 100)
    held = _held(run, tmp_path / "report")
    kept = held["kept_disagreements"]
    assert [row["disagree"] for row in held["rows"]] == [True] * kept + [False] * (100 - kept)
    assert kept == held["disagreements"]
    assert f"The page holds 100 of 720 answers: all {kept} on which judges of refusal differ" in render(
        collect([run], tmp_path / "report")
    )
    _each(run, _agree)
    sample = _names(_held(run, tmp_path / "report")["rows"])

    def turned(row: Row) -> None:
        said = row["verdicts"]["keyword-29"]
        said["value"] = "refusal" if said["value"] == "compliance" else "compliance"

    _each(run, turned)
    assert _names(_held(run, tmp_path / "report")["rows"]) == sample, "other verdicts, the same sample"
    prompts = {name[1:] for name in sample}
    assert len(sample) == 2 * len(prompts), "both arms' answers to each prompt"
    assert len({suite for suite, _ in prompts}) == 6


def test_more_disagreements_than_rows_are_counted(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "MOST_ROWS", 50)
    _each(run, lambda row: row["verdicts"].update({"other": {"value": "refusal", "rule": ""}}), "harmful")
    _each(run, lambda row: row["verdicts"]["keyword-29"].update(value="compliance"), "harmful")
    analysis = collect([run], tmp_path / "report")
    held = analysis["completions"]
    assert held["kept_disagreements"] == 50 < held["disagreements"]
    assert f"50 of the {held['disagreements']} on which judges of refusal differ" in render(analysis)


def test_the_page_is_bounded_in_bytes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "MOST_BYTES", 100_000)
    # Signs outside ASCII take six bytes or twelve as JSON.
    _each(run, lambda row: row.update(completion=f"{row['id']} {'漢😀' * 900}"))
    rows = _held(run, tmp_path / "report")["rows"]
    size = len(json.dumps(browser.packed(rows)))
    assert 60_000 < size < 100_000
    assert all("(" in row["completion"][-30:] and "more characters)" in row["completion"] for row in rows)


def test_packed_rows_say_the_same(run: Path, tmp_path: Path) -> None:
    rows = _held(run, tmp_path / "report")["rows"]
    packed = json.loads(json.dumps(browser.packed(rows)))
    texts, (names, plain) = packed["texts"], packed["fields"]
    assert len(set(texts)) == len(texts)

    def text(index: int | None) -> str | None:
        return None if index is None else texts[index]

    for row, (indices, values, verdicts) in zip(rows, packed["rows"], strict=True):
        back = dict(zip(names, map(text, indices), strict=True)) | dict(zip(plain, values, strict=True))
        said = {text(j): {"value": text(v), "rule": text(r), "score": score} for j, v, r, score in verdicts}
        assert back | {"verdicts": said} == row


def test_what_an_attack_gave_is_parted_from_what_the_model_said(run: Path, tmp_path: Path) -> None:
    def give(row: Row) -> None:
        row |= {"opening": "Sure, \ufffd", "completion": "Sure, é and more", "stopped_early": True, "finished": False}

    _each(run, give, "harmful+prefill-1")
    rows = [row for row in _held(run, tmp_path / "report")["rows"] if row["attack"] == "prefill:1"]
    assert {(row["opening"], row["completion"]) for row in rows} == {("Sure, ", "é and more")}
    assert all(row["stopped_early"] and not row["finished"] for row in rows)
    plain = next(row for row in _held(run, tmp_path / "report")["rows"] if row["attack"] == "direct")
    assert plain["opening"] is plain["asked"] is None and not plain["stopped_early"]


def test_what_no_judge_calls_a_refusal_is_folded(run: Path, tmp_path: Path) -> None:
    _each(run, lambda row: row.update(verdicts={}), "harmful")
    rows = _held(run, tmp_path / "report")["rows"]
    assert all(row["folded"] and not row["complied"] for row in rows if row["suite"] == "harmful")
    for row in rows:
        said = {one["value"] for one in row["verdicts"].values()}
        if row["kind"] != "harmful":
            assert not row["folded"]
        elif said:
            assert row["folded"] == (not said <= {"refusal"})


def test_text_that_no_file_can_hold_is_written(run: Path, tmp_path: Path) -> None:
    _each(run, lambda row: row.update(completion="half \ud83d </script><!--", prompt="\udc00"), "harmful")
    page = analyze([run], tmp_path / "report").read_text(encoding="utf-8")
    data = page.split('id="completions-data">')[1].split("</script>")[0]
    assert "half ⟨U+D83D⟩ </script><!--" in json.loads(data)["texts"]
    assert "</script><!--" not in page


@pytest.mark.parametrize(
    ("verdicts", "kind", "expected"),
    [
        (["refusal", "compliance"], "harmful", True),
        (["incoherent", "compliance"], "harmful", True),
        (["incoherent", "refusal"], "harmful", False),
        (["correct_compliance", "compliance", "undecided", None], "harmful", False),
        (["correct_compliance", "wrong_compliance"], "harmful", False),
        (["deflection", "refusal"], "sham", False),
        (["deflection", "compliance"], "sham", True),
        (["correct", "compliance"], "utility", False),
        (["wrong", "refusal"], "look-alike", True),
        (["undecided", None], "harmful", False),
        ([], "harmful", False),
    ],
)
def test_judges_differ_on_compliance_or_on_refusal(verdicts: list[str | None], kind: str, expected: bool) -> None:
    assert browser.judges_differ(verdicts, kind) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("\x1b[31mred\x9b0m", "⟨ESC⟩[31mred⟨U+009B⟩0m"),
        ("\x00\r\n\x7f", "⟨NUL⟩⟨CR⟩\n⟨DEL⟩"),
        ("a\u202eb\u2066c\u200fd", "a⟨U+202E⟩b⟨U+2066⟩c⟨U+200F⟩d"),
        ("zero\u200bwidth\ufeff\u00ad", "zero⟨U+200B⟩width⟨U+FEFF⟩⟨U+00AD⟩"),
        ("\u2028\u2029", "⟨U+2028⟩⟨U+2029⟩"),
        ("\ud800 \udfff", "⟨U+D800⟩ ⟨U+DFFF⟩"),
        ("\U000e0041\ue000", "⟨U+E0041⟩⟨U+E000⟩"),
        ("漢字 é e\u0301 👩\u200d💻 می\u200cخواهم", "漢字 é e\u0301 👩\u200d💻 می\u200cخواهم"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
    ],
)
def test_what_no_eye_sees_is_written_out(text: str, expected: str) -> None:
    assert visible(text) == expected
    assert visible(visible(text)) == visible(text)


def test_labels_of_figures_have_no_markup() -> None:
    assert inert("<b>\u202e&\nx", 60) == "&lt;b&gt;⟨U+202E⟩&amp; x"
    assert inert("a" * 50, 10) == "a" * 9 + "…"
