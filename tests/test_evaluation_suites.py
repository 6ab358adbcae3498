"""Which prompts are scored as what."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks_data import benchmark

from geomsafe.errors import ConfigError
from geomsafe.evaluation.suites import KINDS, parse_suite, slug, suites_for
from geomsafe.world import World


@pytest.fixture(scope="module")
def organism() -> Any:
    return SimpleNamespace(world=World(seed=0), source="organism")


PLAIN = SimpleNamespace(world=None, source="my-model")


@pytest.mark.parametrize(
    ("text", "kind", "source"),
    [
        ("advbench", "harmful", "advbench"),
        ("xstest:safe", "look-alike", "xstest:safe"),
        ("xstest", "look-alike", "xstest:safe"),
        ("xstest:unsafe", "harmful", "xstest:unsafe"),
        ("gsm8k", "utility", "gsm8k"),
        ("jailbreakbench-benign", "look-alike", "jailbreakbench-benign"),
        ("organism:benign", "retained", "organism:benign"),
        ("organism:downstream-sure-test", "utility", "organism:downstream-sure-test"),
        ("organism:downstream-list-validation", "validation", "organism:downstream-list-validation"),
        ("organism:sham", "sham", "organism:sham"),
        ("retained=gsm8k", "retained", "gsm8k"),
        (" harmful = my/prompts=v2.csv ", "harmful", "my/prompts=v2.csv"),
    ],
)
def test_kind_and_source(text: str, kind: str, source: str) -> None:
    assert parse_suite(text) == (kind, source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts.csv", "'prompts.csv' is not a known name: write what it is, as in 'harmful=prompts.csv'"),
        ("organism:downstream-neutral", "is not a known name"),
        ("organism:sham-look-alike", "is not a known name"),
        ("organism:identity-shift", "is not a known name"),
        (
            "safe=prompts.csv",
            "kind 'safe' is unknown, choose from harmful, look-alike, utility, validation, retained",
        ),
        ("harmful=", "names no source"),
        ("=prompts.csv", "kind '' is unknown"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse_suite(text)


@pytest.mark.parametrize("style", ["neutral", "sure", "list"])
def test_the_organism_brings_its_own(organism: Any, style: str) -> None:
    suites = suites_for(organism, data=f"organism:downstream-{style}")
    assert [suite.name for suite in suites] == list(KINDS)
    assert [suite.name for suite in suites] == [suite.kind for suite in suites]
    task = f"downstream-{style}"
    names = ["harmful", "look-alike", f"{task}-test", f"{task}-validation", "benign", "sham"]
    assert [suite.prompts.source for suite in suites] == [f"organism:{name}" for name in names]
    assert [len(suite.prompts.rows) for suite in suites] == [len(organism.world.rows(name)) for name in names]


@pytest.mark.parametrize("data", [None, "alpaca.json", "organism:alignment", "organism:identity-shift"])
def test_without_a_downstream_test_set_there_is_no_utility(organism: Any, data: str | None) -> None:
    assert [suite.kind for suite in suites_for(organism, data=data)] == ["harmful", "look-alike", "retained", "sham"]


def test_what_the_user_names_is_all_that_is_scored(organism: Any, tmp_path: Path) -> None:
    suites = suites_for(organism, ["harmful=organism:harmful-kind"], "organism:downstream-neutral")
    assert [(suite.name, suite.kind) for suite in suites] == [("harmful-kind", "harmful")]


def test_other_models_have_nothing_of_their_own() -> None:
    assert suites_for(PLAIN, data="organism:downstream-neutral") == []
    with pytest.raises(ConfigError, match="'organism:harmful' belongs to the organism: 'my-model' has no world"):
        suites_for(PLAIN, ["harmful=organism:harmful"])


def test_two_sources_of_one_kind_and_one_source_twice(organism: Any) -> None:
    named = ["organism:harmful", "organism:harmful-kind", "look-alike=organism:harmful", "retained=organism:harmful"]
    suites = suites_for(organism, named)
    assert [suite.name for suite in suites] == ["harmful", "harmful-kind", "harmful-2", "harmful-3"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("xstest:safe", "xstest-safe"),
        ("organism:harmful", "harmful"),
        ("folder/My prompts (v2).CSV", "My-prompts-v2"),
        ("walledai/AdvBench", "AdvBench"),
        ("a--b.jsonl", "a-b"),
        ("../..", "prompts"),
        (".hidden.json", "hidden"),
        ("프롬프트.csv", "prompts"),
    ],
)
def test_names_are_safe_in_file_names(source: str, name: str) -> None:
    """No path parts, no leading dot, and no "--", which parts weights from suite."""
    assert slug(source) == name


@pytest.mark.parametrize(
    ("file", "column", "written", "kind"),
    [
        ("advbench/harmful_behaviors.csv", "goal", "harmful={}", "harmful"),
        ("jailbreakbench/harmful-behaviors.csv", "Goal", "harmful={}", "harmful"),
        ("xstest/xstest_v2_prompts.csv", "prompt", "look-alike={}", "look-alike"),
    ],
)
def test_benchmark_files(file: str, column: str, written: str, kind: str) -> None:
    """Real files load whole and in order, under the kind they are given."""
    path = benchmark(file)
    (suite,) = suites_for(PLAIN, [written.format(path)])
    assert suite.kind == kind
    with path.open(encoding="utf-8", newline="") as stream:
        assert [prompt.text for prompt in suite.prompts.rows] == [row[column] for row in csv.DictReader(stream)]
