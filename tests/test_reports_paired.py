"""Two scored models prompt by prompt: by definition, and only where it is a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from geomsafe.analyses.rates import paired_difference
from geomsafe.cli.main import app
from geomsafe.errors import RecordError
from geomsafe.records import Evaluation, write_jsonl
from geomsafe.reports.paired import Side, paired_scores

ALIKE = {"system_prompt": None, "template_sha256": "a" * 64, "max_new_tokens": 8, "decoding": "greedy", "attack": {}}


def side(folder: Path, name: str, verdicts: str, clusters: str = "aabbcc", prompts: str = "p", **settings: Any) -> Side:
    """A model whose answers got "r" or "c", "-" for no verdict."""
    words = {"r": "refusal", "c": "compliance"}
    rows = [
        {
            "id": str(index),
            "cluster": cluster,
            "verdicts": {"k": {"value": words[said], "rule": ""}} if said in words else {},
        }
        for index, (said, cluster) in enumerate(zip(verdicts, clusters, strict=True))
    ]
    file = f"{name}.jsonl"
    write_jsonl(folder / file, rows)
    counts = {word: verdicts.count(letter) for letter, word in words.items()}
    one = Evaluation(
        weights="model", suite="asked", kind="harmful", source="asked.csv", prompts_sha256=prompts, file=file,
        n=len(rows), scores={"k": counts}, settings=ALIKE | settings,
    )  # fmt: skip
    return Side(name, folder, [one])


def test_differences_are_those_of_the_pairs(tmp_path: Path) -> None:
    first, second = side(tmp_path, "a", "rrcccc"), side(tmp_path, "b", "rrrrcc")
    refusal, compliance = paired_scores(first, second)
    assert (refusal.verdict, refusal.first, refusal.second) == ("refusal", 2 / 6, 4 / 6)
    expected = paired_difference([1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], list("aabbcc"))
    assert refusal.difference == expected and expected.difference == pytest.approx(-1 / 3, abs=1e-12)
    assert compliance.difference.difference == -refusal.difference.difference
    apart = paired_scores(side(tmp_path, "a", "rrcccc", "abcdef"), side(tmp_path, "b", "rrrrcc", "abcdef"))[0]
    assert apart.difference.clusters == 6 and apart.difference.p_value != refusal.difference.p_value


def test_only_prompts_that_both_have_a_verdict_on_count(tmp_path: Path) -> None:
    refusal, _ = paired_scores(side(tmp_path, "a", "rr-ccc"), side(tmp_path, "b", "r-rrcc"))
    assert refusal.difference.n == 4 and (refusal.first, refusal.second) == (1 / 4, 2 / 4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"system_prompt": "Be brief."}, r"system prompt \(none and Be brief.\)"),
        ({"template_sha256": "b" * 64}, "chat template"),
        ({"max_new_tokens": 9}, r"longest answer \(8 and 9\)"),
        ({"decoding": "sampled", "temperature": 1.0}, r"decoding \(greedy and sampled\), temperature"),
    ],
)
def test_other_settings_are_no_comparison_unless_asked_for(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    first, second = side(tmp_path, "a", "rrcccc"), side(tmp_path, "b", "rrrrcc", **settings)
    with pytest.raises(RecordError, match=named):
        paired_scores(first, second)
    assert paired_scores(first, second, allow_mixed=True) == paired_scores(first, side(tmp_path, "b", "rrrrcc"))


def test_other_prompts_are_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="suite 'asked' has other prompts in 'a'"):
        paired_scores(side(tmp_path, "a", "rrcccc"), side(tmp_path, "b", "rrrrcc", prompts="q"), allow_mixed=True)
    with pytest.raises(RecordError, match="share no prompt set"):
        paired_scores(side(tmp_path, "a", "rrcccc"), Side("b", tmp_path, []))


def test_the_command_compares_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the organism against itself: no difference; with another system prompt on one side there is no comparison."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEOMSAFE_CACHE", "off")
    asked = ["--prompts", "organism:harmful", "--limit", "6", "--max-new-tokens", "16"]
    done = CliRunner().invoke(app, ["evaluate", "organism", "organism", "--paired", *asked])
    assert done.exit_code == 0, done.output
    assert "A against B, prompt by prompt" in done.output and "+0.000" in done.output
    for wrong, message in (
        (["evaluate", "organism", "--paired", *asked], "--paired compares two models, 1 given"),
        (["evaluate", "organism", "organism", *asked], "several models are scored one by one"),
        (["evaluate", "organism", "organism", "--paired", "--out", "x", *asked], "--out is one folder"),
        (["evaluate", "m", "--engine", "openai", *asked], "needs the server's address: add --base-url"),
        (["evaluate", "m", "--base-url", "http://x/v1", *asked], "add --engine openai"),
    ):
        refused = CliRunner().invoke(app, wrong)
        assert message in str(refused.exception), refused.output
