"""Suite files: sets, attacks and judges from YAML, checked before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from geomsafe.errors import ConfigError
from geomsafe.evaluation.suite_file import PRESETS, read_suite, suites_of
from geomsafe.world import World

WORLD = World(seed=0)


def written(folder: Path, text: str) -> str:
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "asked.csv"
    path.write_text('goal,target\nBake it,"Sure, here it is"\nStop it,"Sure, here is how"\n', encoding="utf-8")
    return path


def test_a_suite_a_set_and_attack(tmp_path: Path, prompts: Path) -> None:
    text = f"""
        sets:
          - {{source: {prompts}, kind: harmful, limit: 1}}
          - look-alike={prompts}
          - {{source: {prompts}, kind: harmful, attacks: [direct], judges: [keyword-12]}}
        attacks: [direct, "prefill:2"]
        judges: [keyword-29, "keyword-29:opening"]
        max_new_tokens: 7
    """
    spec = read_suite(written(tmp_path, text), organism=False)
    suites = suites_of(spec, None, "m")
    assert [(one.name, one.kind, one.attack.name) for one in suites] == [
        ("asked", "harmful", "direct"),
        ("asked+prefill-2", "harmful", "prefill:2"),
        ("asked-2", "look-alike", "direct"),
        ("asked-3", "harmful", "direct"),
    ]
    assert [one.limit for one in suites] == [1, 1, None, None]
    assert suites[0].judges == ("keyword-29", "keyword-29:opening") and suites[3].judges == ("keyword-12",)
    assert spec.max_new_tokens == 7 and spec.temperature is None


@pytest.mark.parametrize("organism", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str, organism: bool) -> None:
    """The organism's are its own sets; the others name published ones, which only the hub can give."""
    spec = read_suite(name, organism)
    assert all(one.source.startswith("organism:") == organism for one in spec.sets)
    if organism:
        suites = suites_of(spec, WORLD, "organism")
        assert {one.kind for one in suites} == {"harmful", "look-alike", "retained", "sham"}
        assert all(one.attack.name == "direct" for one in suites if one.kind != "harmful")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no sets"),
        ("- advbench", "names no sets"),
        ("sets: advbench", "names no sets"),
        ("sets: []", "sets: "),
        ("sets: [advbench", "is no YAML"),
        ("sets: [nonsense]", "prompt set 'nonsense' is not a known name"),
        ("sets: [advbench]\nattacks: [prefill]", "attack 'prefill': write prefill:N"),
        ("sets: [advbench]\nattacks: [magic]", "attack 'magic' is unknown: choose from direct"),
        ("sets: [advbench]\njudges: [keyword-30]", "keyword judge 'keyword-30' is unknown"),
        ("sets: [advbench]\njudges: [{name: x, type: magic, model: y}]", "field 'type' is 'magic'"),
        ("sets: [advbench]\ntemprature: 1", "temprature: Extra inputs are not permitted"),
        ("sets: [{source: advbench, limit: 0}]", "sets.0.limit: Input should be greater than or equal to 1"),
        ("sets: [{source: 'xstest:safe', attacks: ['prefill:2']}]", "is look-alike: attacks are for harmful sets"),
        ("sets: [advbench]\ntemperature: 0\ntop_p: 0.5", "top_p 0.5 means nothing at temperature 0"),
    ],
)
def test_what_no_suite_can_say_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_suite(written(tmp_path, text), organism=False)


def test_a_secret_in_the_wrong_place_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_suite(written(tmp_path, "sets: [advbench]\napi_key: sk-SECRET"), organism=False)
    assert "api_key" in str(error.value) and "SECRET" not in str(error.value)


def test_a_long_attack_has_a_short_name(tmp_path: Path, prompts: Path) -> None:
    """File systems have limits."""
    text = f"""
        sets: [{{source: {prompts}, kind: harmful}}]
        attacks: ["prefill:2:{"Sure, " * 80}"]
    """
    (one,) = suites_of(read_suite(written(tmp_path, text), organism=False), None, "m")
    assert len(one.name) < 80


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite 'none.yaml' cannot be read .*: name quick, full or a YAML file"):
        read_suite("none.yaml", organism=False)


def test_the_organisms_prompts_are_for_models_of_its_world(tmp_path: Path) -> None:
    spec = read_suite(written(tmp_path, "sets: ['organism:harmful']"), organism=False)
    with pytest.raises(ConfigError, match="'organism:harmful' belongs to the organism: 'm' has no world"):
        suites_of(spec, None, "m")
