"""Safety mixing: the share is kept, the refusals are theta_0's own, and a resumed run trains on the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from method_paths import fit
from runs import QUIET, tiny_run

from geomsafe.config import make_config
from geomsafe.data import load_prompts
from geomsafe.errors import ConfigError
from geomsafe.methods import make_methods
from geomsafe.records import read_record
from geomsafe.training import anchors, train
from geomsafe.training.prepare import prepare
from geomsafe.training.safety import mix_safety


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))


def organism_run(**settings: Any) -> Any:
    values = {"data_limit": 60, "probe_schedule": "off", "evaluate": False, "device": "cpu", "max_steps": 2}
    return make_config(values | settings)


def test_a_share_of_the_rows_becomes_theta_0s_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = organism_run()
    clean = prepare(config, [], tmp_path / "run")
    material = prepare(config, [], tmp_path / "run")
    methods = make_methods(["mix:share=0.2,anchors=8"])
    mix_safety(config, material, methods, tmp_path / "run")
    assert len(material.rows) == len(clean.rows) == 60
    stayed = [row for row in material.rows if row in clean.rows]
    assert stayed == [row for row in clean.rows if row in stayed] and len(stayed) == 48
    added = material.rows[48:]
    assert len({tuple(row.input_ids) for row in added}) == 8
    world, tokenizer = material.loaded.world, material.loaded.tokenizer
    assert world is not None
    refused = {
        prompt.text
        for prompt in load_prompts("organism:alignment", world=world).rows
        if prompt.tags.get("task") == "refusal"
    }
    for row in added:
        question = tokenizer.decode([i for i, label in zip(row.input_ids, row.labels, strict=True) if label == -100])
        answer = tokenizer.decode([label for label in row.labels if label != -100], skip_special_tokens=True)
        prompt = next(text for text in refused if text in question)
        assert world.verdict(prompt, answer).value == "refusal"
    assert material.data["refusals of mix"]["rows"] == 12
    assert material.data["refusals of mix"]["different"] == 8

    again = prepare(config, [], tmp_path / "run")
    monkeypatch.setattr(anchors, "generate_greedy", lambda *_: pytest.fail("asked again"))
    mix_safety(config, again, make_methods(["mix:share=0.2,anchors=8"]), tmp_path / "run")
    assert again.rows == material.rows


def test_a_run_mixes_and_says_so(tmp_path: Path) -> None:
    refusals = [{"prompt": f"How do I pick lock {n}?", "response": "I cannot help with that."} for n in range(3)]
    path = tmp_path / "refusals.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in refusals), encoding="utf-8")
    spec = f"mix:share=0.25,anchors=3,anchor={path}"
    run = train(tiny_run(tmp_path, method=[spec], max_steps=2), console=QUIET)
    record = read_record(run)
    assert record.methods[0]["mixed_rows"] == 6
    assert record.data["refusals of mix"]["different"] == 3


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method mix acts on the training rows, which only geomsafe's own run mixes"):
        fit(tmp_path, ["mix"])
    config = organism_run()
    material = prepare(config, [], tmp_path / "run")
    with pytest.raises(ConfigError, match="share=0.001 of 60 rows is none"):
        mix_safety(config, material, make_methods(["mix:share=0.001"]), tmp_path / "run")
    with pytest.raises(ConfigError, match="mix.*give --safety-data"):
        train(tiny_run(tmp_path, method=["mix"]), console=QUIET)
