"""Settings: one grammar, unknown keys refused with the near one, YAML that reproduces."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from geomsafe.config import MethodSpec, TrainConfig, dump_config, load_config, make_config
from geomsafe.errors import ConfigError

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.one_of(
    st.integers(-(10**6), 10**6),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from(["feedback", "shadow", "epoch"]),
)


@given(NAMES, st.dictionaries(NAMES, VALUES, max_size=4))
def test_method_grammar_round_trips(name: str, options: dict[str, str | int | float | bool]) -> None:
    spec = MethodSpec(name=name, options=options)
    again = MethodSpec.parse(str(spec))
    assert again.name == name
    assert again.options == pytest.approx(options) if options else not again.options


@pytest.mark.parametrize("text", ["ema:eta", "ema:=1", ":eta=1", "ema:eta=1,eta=2"])
def test_broken_method_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="method"):
        MethodSpec.parse(text)


def test_unknown_setting_suggests_the_near_one() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'batchsize': did you mean 'batch_size'"):
        make_config({"batchsize": 3})
    with pytest.raises(ConfigError, match="unknown setting 'lora.ranks': did you mean 'rank'"):
        make_config({"lora": {"ranks": 3}})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": -1}, "lr"),
        ({"lr": "fast"}, "fast"),
        ({"batch_size": 0}, "batch_size"),
        ({"optimizer": "lion"}, "lion"),
        ({"probe_schedule": "often"}, "often"),
        ({"probe_examples": 2}, "probe_examples"),
    ],
)
def test_values_out_of_range_name_setting_and_value(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(values)


def test_an_unquoted_off_in_yaml_is_off(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("probe_schedule: off\n", encoding="utf-8")
    assert make_config(load_config(path)).probe_schedule == "off"


def test_yaml_reproduces_the_settings(tmp_path: Path) -> None:
    config = make_config({"method": "ema:eta=0.5,mode=feedback", "lora": {"rank": 4}, "out": "runs/x", "lr": 3e-4})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert make_config(load_config(path)) == config
    assert set(yaml.safe_load(dump_config(config))) == set(TrainConfig.model_fields), "every setting is written out"


@pytest.mark.parametrize("content", [b"- a\n", b"lr: [", b"\xff\xfe"])
def test_broken_yaml_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="broken.yaml") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_every_setting_is_documented() -> None:
    bare = [name for name, field in TrainConfig.model_fields.items() if not field.description]
    assert not bare
