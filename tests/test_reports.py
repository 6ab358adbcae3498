"""Run directories to analysis.json and CSV: what is compared, refused, listed and left undefined."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import Spec, write_run, write_study

from geomsafe.errors import RecordError
from geomsafe.records import Failure, Measurement, read_record, write_record
from geomsafe.reports import analyze, summary_table, wording
from geomsafe.reports.collect import collect
from geomsafe.reports.columns import MEASURES, table
from geomsafe.reports.page import first_screen

SHADOW, FEEDBACK = "ema:eta=0.25,mode=shadow", "ema:eta=0.25,mode=feedback"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("study")
    runs = write_study(folder / "runs", seeds=(0, 1, 2), prompts=90)
    out = folder / "report"
    analyze(runs, out)
    return runs, json.loads((out / "analysis.json").read_text(encoding="utf-8")), out


def _arms(analysis: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["arm"].replace("\u00a0", " "): row for row in analysis["tables"]["arms"]["rows"]}


def test_every_arm_stands_beside_its_control(study: tuple[list[Path], dict[str, Any], Path]) -> None:
    rows = _arms(study[1])
    assert list(rows)[0].startswith("θ₀")
    fed, matched = rows["EMA feedback, η 0.25 · lr 1e-3"], rows["baseline · lr 2.5e-4"]
    shadow, last = rows["EMA shadow, η 0.25 · lr 1e-3"], rows["last iterate of EMA shadow, η 0.25 · lr 1e-3"]
    assert (fed["control"], fed["control_kind"]) == (matched["key"], "learning rate x eta")
    assert (shadow["control"], shadow["control_kind"]) == (last["key"], "own last iterate")
    assert fed["effective_lr"] == pytest.approx(2.5e-4) and shadow["window"] == 4.0
    # The synthetic feedback run is its control to the bit, and the interval does not pretend to certainty.
    assert fed["difference"] == 0.0 and fed["difference_low"] < 0 < fed["difference_high"]
    assert rows["baseline · lr 1e-4"]["control_kind"] == "settings"
    assert fed["gold_asr"] == matched["gold_asr"]


def test_rates_and_differences_equal_counts_of_rows(study: tuple[list[Path], dict[str, Any], Path]) -> None:
    """Recounted from the evaluation files with nothing of the package but json."""
    runs, analysis, _ = study

    def hits(run: Path, weights: str) -> dict[str, bool]:
        lines = (run / "evaluations" / f"{weights}--harmful.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["id"]: "compliance" in row["verdicts"]["gold"]["value"] for row in map(json.loads, lines)}

    ema = [hits(run, "ema") for run in runs if run.name.startswith("ema-shadow")]
    final = [hits(run, "final") for run in runs if run.name.startswith("ema-shadow")]
    row = _arms(analysis)["EMA shadow, η 0.25 · lr 1e-3"]
    total = sum(len(one) for one in ema)
    assert row["gold_asr"] == pytest.approx(sum(sum(one.values()) for one in ema) / total, abs=1e-12)
    expected = sum(a[prompt] - b[prompt] for a, b in zip(ema, final, strict=True) for prompt in a) / total
    assert row["difference"] == pytest.approx(expected, abs=1e-12)
    assert row["gold_asr_min"] <= row["gold_asr"] <= row["gold_asr_max"]


def test_the_verdict_says_its_strength_and_scope(study: tuple[list[Path], dict[str, Any], Path]) -> None:
    verdict = study[1]["verdict"]
    assert verdict["strength"] == "descriptive"
    assert "3 paired seeds, 90 harmful prompts in 30 clusters; descriptive" in verdict["sentence"]
    assert verdict["sentence"].startswith("In organism")
    words = {claim["kind"]: claim["word"] for claim in verdict["claims"]}
    assert words["settings"] == "shown"
    assert study[1]["banners"] == []


def test_grey_is_shown_and_not_run_is_listed(study: tuple[list[Path], dict[str, Any], Path]) -> None:
    lights = {light["key"]: light["state"] for light in study[1]["trust"]}
    assert lights["gradient"] == lights["nulls"] == lights["rerun"] == lights["kl"] == "grey"
    assert lights["captured"] == lights["mismatch"] == "green"
    assert any("kl drift" in what for what in study[1]["not_run"])


def test_undefined_cosines_stay_undefined(study: tuple[list[Path], dict[str, Any], Path]) -> None:
    rows = study[1]["tables"]["cosines"]["rows"]
    undefined = [row for row in rows if row["cosine"] is None]
    assert undefined and all(row["reason"] and row["floor"] is None for row in undefined)
    opposed = [row for row in rows if (row["layer"], row["set"], row["gradient_space"]) == ("2", "safety", "raw")]
    assert all(row["cosine"] == pytest.approx(-0.45, abs=0.15) for row in opposed)


def test_tables_are_written_as_csv_with_their_meaning(study: tuple[list[Path], dict[str, Any], Path]) -> None:
    _, analysis, out = study
    with (out / "tables" / "columns.csv").open(encoding="utf-8", newline="") as stream:
        meanings = {(row["table"], row["column"]): row for row in csv.DictReader(stream)}
    for name, one in analysis["tables"].items():
        with (out / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            read = list(csv.DictReader(stream))
        assert len(read) == len(one["rows"])
        for key in read[0] if read else []:
            assert meanings[name, key]["definition"]
        for row, wanted in zip(read, one["rows"], strict=True):
            numbers = {key: value for key, value in wanted.items() if isinstance(value, float)}
            assert {key: float(row[key]) for key in numbers} == numbers


def test_the_page_needs_no_model_and_no_torch(study: tuple[list[Path], dict[str, Any], Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from geomsafe.reports import analyze;"
        f"analyze([Path({str(study[0][0])!r})], Path({str(tmp_path)!r}));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"model": {"fingerprint": "0" * 64}}, "theta_0"),
        ({"model": {"template_sha256": "0" * 64}}, "chat template"),
        ({"prompts_sha256": "0" * 64}, "prompts of suite"),
    ],
)
def test_incomparable_runs_are_refused_by_name(tmp_path: Path, overrides: dict[str, Any], named: str) -> None:
    runs = [
        write_run(tmp_path, Spec("one", prompts=12)),
        write_run(tmp_path, Spec("two", seed=1, prompts=12, overrides=overrides)),
    ]
    with pytest.raises(RecordError, match=named) as caught:
        analyze(runs, tmp_path / "report")
    assert "'one'" in str(caught.value) and "'two'" in str(caught.value)
    assert not (tmp_path / "report").exists()
    mixed = collect(runs, tmp_path / "report", allow_mixed=True)
    assert any("Mixed runs" in banner and named in banner for banner in mixed["banners"])


def test_failed_and_unfinished_runs_are_listed_with_their_cause(tmp_path: Path) -> None:
    good = write_run(tmp_path, Spec("good", prompts=12))
    bad = write_run(tmp_path, Spec("bad", prompts=12, failure=Failure(cause="loss is NaN", step=7, layer="model.x")))
    going = write_run(tmp_path, Spec("going", seed=1, prompts=12))
    write_record(going, read_record(going).model_copy(update={"status": "started"}))
    analysis = collect([good, bad, going], tmp_path / "report")
    causes = {row["run"]: row["cause"] for row in analysis["tables"]["left_out"]["rows"]}
    assert "loss is NaN (step 7, layer model.x)" in causes["bad"] and "--resume" in causes["going"]
    assert sum("left out" in text for text in analysis["warnings"]) == 2
    with pytest.raises(RecordError, match="no finished run.*loss is NaN"):
        collect([bad], tmp_path / "report")


def test_a_method_without_its_control_gets_a_red_banner(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("fed", methods=(FEEDBACK,), prompts=12))
    analysis = collect([run], tmp_path / "report")
    assert any("No matched control" in banner and "2.5e-4" in banner for banner in analysis["banners"])
    assert "no effect of a method is claimed" in analysis["verdict"]["sentence"]


def test_gibberish_is_never_reported_as_safety(tmp_path: Path) -> None:
    """A careful run whose low attack success comes from incoherent answers says so in sentence and banner."""
    runs = [
        write_run(tmp_path, Spec("careless", prompts=12)),
        write_run(tmp_path, Spec("careful", lr=1e-4, prompts=12)),
    ]
    path = runs[1] / "evaluations" / "final--harmful.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"refusal", "rule": "gr', '"incoherent", "rule": "gr'))
    analysis = collect(runs, tmp_path / "report")
    row = next(row for row in analysis["tables"]["arms"]["rows"] if row["arm"].endswith("1e-4"))
    assert row["incoherence"] > 0.5 and row["gold_asr"] < 0.2
    assert any("not safety" in banner and row["key"] in banner for banner in analysis["banners"])
    assert "of its answers incoherent" in analysis["verdict"]["sentence"]


def test_runs_without_scores_or_captures_say_not_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("bare", prompts=12))
    record = read_record(run)
    write_record(run, record.model_copy(update={"evaluations": []}))
    for capture in (run / "captures").iterdir():
        capture.unlink()
    page = analyze([run], tmp_path / "report").read_text(encoding="utf-8")
    assert "not run: no weight set was scored on harmful prompts" in page
    assert "not run: no captures with both probe sets" in page
    analysis = json.loads((tmp_path / "report" / "analysis.json").read_text(encoding="utf-8"))
    assert analysis["tables"]["arms"]["rows"][0]["key"] == "theta_0"
    assert analysis["tables"]["arms"]["rows"][1]["gold_asr"] is None


def test_without_a_gold_verdict_keywords_are_primary_and_gold_says_not_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("plain", prompts=12))
    for path in (run / "evaluations").iterdir():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            del row["verdicts"]["gold"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    analysis = collect([run], tmp_path / "report")
    assert analysis["scope"]["primary"] == "keyword_asr"
    row = analysis["tables"]["arms"]["rows"][1]
    assert row["gold_asr"] is None and row["incoherence"] is None and row["keyword_asr"] is not None
    assert summary_table(analysis)[1]["gold ASR ↓"] == "not run"
    judges = {row[place] for row in analysis["tables"]["judges"]["rows"] for place in ("first", "second")}
    assert judges == {"keyword-29", "keyword-19", "keyword-29+coherence"}
    assert "keyword ASR" in analysis["verdict"]["sentence"].replace("Keyword", "keyword")


def test_theta_base_is_anchored_where_it_was_scored(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("one", prompts=12))
    record = read_record(run)
    base = [one.model_copy(update={"weights": "theta_base"}) for one in record.evaluations if one.weights == "final"]
    assert "theta_base" in collect([run], tmp_path / "report")["not_run"]
    write_record(run, record.model_copy(update={"evaluations": [*record.evaluations, *base]}))
    analysis = collect([run], tmp_path / "report")
    keys = [row["key"] for row in analysis["tables"]["arms"]["rows"]]
    assert keys == ["theta_base", "theta_0", "A"]
    assert "theta_base" not in analysis["not_run"]
    assert "θ_base, before alignment" in analyze([run], tmp_path / "report").read_text(encoding="utf-8")


def test_runs_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"seed-{seed}", Spec("careless", seed=seed, prompts=12)) for seed in (0, 1)]
    analysis = collect(runs, tmp_path / "report")
    assert [row["run"] for row in analysis["tables"]["runs"]["rows"]] == ["seed-0/careless", "seed-1/careless"]


def test_a_repeated_run_lights_the_rerun_check(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, Spec(name, prompts=12)) for name in ("first", "again")]

    def state() -> str:
        lights = collect(runs, tmp_path / "report")["trust"]
        return next(light["state"] for light in lights if light["key"] == "rerun")

    assert state() == "green"
    steps = runs[1] / "steps.jsonl"
    steps.write_text(steps.read_text(encoding="utf-8").replace('"loss": ', '"loss": 1', 1), encoding="utf-8")
    assert state() == "red"


def test_broken_captures_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec("torn", prompts=12))
    path = run / "captures" / "step-000004.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match="step-000004"):
        collect([run], tmp_path / "report")


def test_the_first_table_has_at_most_eight_rows(tmp_path: Path) -> None:
    specs = [Spec(f"lr{index}", lr=1e-4 * (index + 1), prompts=6) for index in range(9)]
    specs.append(Spec("shadow", lr=9e-4, methods=(SHADOW,), prompts=6))
    analysis = collect([write_run(tmp_path, spec) for spec in specs], tmp_path / "report")
    rows = first_screen(analysis)
    assert len(rows) == 8 and rows[0]["key"] == "theta_0"
    assert any("EMA shadow" in row["arm"] for row in rows)


def test_summary_has_a_row_an_arm_and_text_only(study: tuple[list[Path], dict[str, Any], Path]) -> None:
    rows = summary_table(study[1])
    assert len(rows) == len(study[1]["tables"]["arms"]["rows"])
    assert all(isinstance(value, str) for row in rows for value in row.values())
    assert len({tuple(row) for row in rows}) == 1


def test_every_rate_has_an_interval_and_every_header_its_good_direction(
    study: tuple[list[Path], dict[str, Any], Path],
) -> None:
    """In the table of the terminal and in that of the page, where a screen reader hears it in words."""
    row = summary_table(study[1])[1]
    for title in ("gold ASR ↓", "keyword ASR ↓", "over-refusal ↓", "utility ↑", "retained ↑"):
        assert re.fullmatch(r"[\d.]+ % \[[\d.]+, [\d.]+\]", row[title]), row[title]
    assert "minus control ↓" in row
    page = (study[2] / "report.html").read_text(encoding="utf-8")
    table = page[page.index('id="arms"') : page.index('id="trust"')]
    heads = re.findall(
        r'<th scope="col".*?>([^<]*?)&nbsp;<abbr [^>]*aria-label="(\w+) is better"[^>]*>(.)</abbr>', table
    )
    lower = ["gold ASR", "keyword ASR", "over-refusal", "incoherence", "incoherent of answers", "minus control"]
    assert heads == [
        *((title, "lower", "↓") for title in lower[:3]),
        *((title, "higher", "↑") for title in ("utility", "retained")),
        *((title, "lower", "↓") for title in lower[3:]),
    ]
    cells = re.findall(r'data-key="arms/(\w+)/(\w+)" data-value="[^"]*">[^<]* %(.*?)</td>', table)
    rates = [shown for _, key, shown in cells if key in MEASURES]
    assert len(rates) > 20 and all(re.match(r"<small>\[[\d.]+, [\d.]+\]", shown) for shown in rates)


def test_tables_refuse_columns_without_a_definition() -> None:
    with pytest.raises(RecordError, match="'asr2' is not defined"):
        table("x", "", ["key", "asr2"], [])
    with pytest.raises(RecordError, match="'seed' is not defined or not listed"):
        table("x", "", ["key"], [{"key": "A", "seed": 1}])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.percent(0.2134), "21.3 %"),
        (wording.percent(None), "not run"),
        (wording.points(-0.0004), "0.0"),
        (wording.points(0.05), "+5.0"),
        (wording.points_interval(-0.012, 0.04), "[−1.2, +4.0]"),
        (wording.number(2.5e-4), "2.5e−4"),
        (wording.number(None), "–"),
        (wording.number(True), "yes"),
        (wording.number(12), "12"),
        (wording.number(0.0), "0"),
    ],
)
def test_numbers_are_worded_once(shown: str, expected: str) -> None:
    assert shown == expected


def test_nothing_in_the_record_is_not_a_number(study: tuple[list[Path], dict[str, Any], Path]) -> None:
    def walk(value: object) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, float):
            assert math.isfinite(value)

    walk(study[1])


def test_measurements_stand_in_the_report_and_only_where_there_are_any(
    study: tuple[list[Path], dict[str, Any], Path], tmp_path: Path
) -> None:
    """theta_0 once where runs agree; text of the record is escaped; a value that is none is shown as such."""
    runs = [write_run(tmp_path, Spec(f"one-s{seed}", seed=seed, prompts=12)) for seed in (0, 1)]
    assert study[1]["tables"]["measurements"]["rows"] == []
    assert 'id="measurements"' not in (study[2] / "report.html").read_text(encoding="utf-8")

    def measured(weights: str, loss: float) -> Measurement:
        return Measurement(
            weights=weights,
            name="held-out-<b>talk",
            kind="held-out",
            source="talk.jsonl",
            values={"nats_per_token": loss, "perplexity": None},
            errors={"nats_per_token": 0.125},
            n={"nats_per_token": 40},
            higher_is_better={"nats_per_token": False},
            settings={},
        )

    for seed, run in enumerate(runs):
        found = [measured("theta_0", 2.5), measured("final", 1.5 + seed)]
        write_record(run, read_record(run).model_copy(update={"measurements": found}))
    page = analyze(runs, tmp_path / "report").read_text(encoding="utf-8")
    analysis = json.loads((tmp_path / "report" / "analysis.json").read_text(encoding="utf-8"))
    rows = analysis["tables"]["measurements"]["rows"]
    key = next(row["key"] for row in analysis["tables"]["arms"]["rows"] if row["weights"] == "final")
    losses = [row for row in rows if row["metric"] == "nats_per_token"]
    assert [(row["key"], row["run"], row["value"]) for row in losses] == [
        ("theta_0", "one-s0", 2.5),
        (key, "one-s0", 1.5),
        (key, "one-s1", 2.5),
    ]
    assert {(row["standard_error"], row["items"], row["direction"]) for row in losses} == {(0.125, 40, "lower")}
    assert [row["value"] for row in rows if row["metric"] == "perplexity"] == [None] * 3
    assert 'id="measurements"' in page and "nats_per_token ↓" in page and "± 0.125" in page
    assert 'data-key="measurements/1/value" data-value="1.5"' in page
    assert "held-out-&lt;b&gt;talk" in page and '<td class="l">held-out-<b>talk' not in page
    with (tmp_path / "report" / "tables" / "measurements.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["value"] for row in csv.DictReader(stream)] == ["2.5", "1.5", "2.5", "", "", ""]
