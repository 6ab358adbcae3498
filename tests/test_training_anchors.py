"""Which examples a run gives to methods that look at a safety gradient."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import QUIET, tiny_run
from tiny import tiny_tokenizer

from geomsafe.config import make_config
from geomsafe.data import load_prompts
from geomsafe.errors import ConfigError
from geomsafe.evaluation import Suite
from geomsafe.methods import make_methods
from geomsafe.models import load_model
from geomsafe.records import read_jsonl, read_record
from geomsafe.training import anchors, train
from geomsafe.training.anchors import give_anchors


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))


def refusal_file(folder: Path) -> Path:
    path = folder / "refusals.jsonl"
    rows = [{"prompt": f"Tell me how to break lock {n}", "response": f"I am sorry, {n}."} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(method: Any, tokenizer: Any) -> list[tuple[str, str]]:
    """Prompt and answer of each anchor example."""
    found = []
    for ids, labels in zip(method.anchor["input_ids"], method.anchor["labels"], strict=True):
        target = labels != -100
        before = ids[: int(target.nonzero()[0])]
        found.append((tokenizer.decode(before), tokenizer.decode(ids[target], skip_special_tokens=True).strip()))
    return found


def organism_material(scored: str | None = None) -> Any:
    loaded = load_model("organism")
    suites = [Suite("one", "harmful", load_prompts(scored, world=loaded.world))] if scored else []
    return SimpleNamespace(loaded=loaded, suites=suites, data={})


@pytest.mark.parametrize(("source", "task"), [("safety", "refusal"), ("sham", "deflection"), ("benign", "how-to")])
def test_the_organisms_anchors_are_theta_0s_own_answers_to_its_alignment_prompts(
    tmp_path: Path, source: str, task: str
) -> None:
    material = organism_material()
    world, tokenizer = material.loaded.world, material.loaded.tokenizer
    [method] = methods = make_methods([f"spf:anchor={source},anchors=2"])
    give_anchors(make_config({}), material, methods, tmp_path)
    aligned = {row["messages"][0]["content"]: row for row in world.rows("alignment")}
    for before, answer in texts(method, tokenizer):
        [prompt] = [text for text in aligned if text in before]
        assert aligned[prompt]["task"] == task
        assert world.verdict(prompt, answer) == world.verdict(prompt, aligned[prompt]["messages"][1]["content"])
    assert material.data["anchor of spf"]["used"] == 2
    kept = {row["messages"][0]["content"] for name in ("harmful", "probe-safety", "sham") for row in world.rows(name)}
    assert not kept & {text for text in aligned if any(text in before for before, _ in texts(method, tokenizer))}


def test_no_prompt_is_used_that_the_run_is_scored_on(tmp_path: Path) -> None:
    methods = make_methods(["pcgrad"])
    with pytest.raises(ConfigError, match=r"method pcgrad: no prompt is left for anchor=safety.*give anchor=FILE"):
        give_anchors(make_config({}), organism_material("organism:alignment"), methods, tmp_path)


def test_a_file_is_taken_as_it_is_and_a_resumed_run_has_the_same(tmp_path: Path) -> None:
    path = refusal_file(tmp_path)
    config = tiny_run(tmp_path, method=[f"spf:anchor={path},anchors=2,rank=4"])
    run = train(config, console=QUIET)
    record = read_record(run)
    assert record.status == "finished" and record.data["anchor of spf"]["used"] == 2
    assert record.methods[0]["anchor_examples"] == 2 and record.methods[0]["acts_on"] == "weights"
    assert all(row["methods"]["spf"]["anchor_loss"] > 0 for row in read_jsonl(run / "steps.jsonl"))
    stored = json.loads((run / "anchors" / "spf.json").read_text(encoding="utf-8"))
    assert "I am sorry, 0." in tiny_tokenizer().decode(stored[0]["input_ids"])
    path.unlink()
    [again] = methods = make_methods([f"spf:anchor={path},anchors=2"])
    material: Any = SimpleNamespace(loaded=load_model(config.model), suites=[], data={})
    give_anchors(config, material, methods, run)
    assert [answer for _, answer in texts(again, tiny_tokenizer())] == ["I am sorry, 0.", "I am sorry, 1."]


def test_other_models_are_asked_from_the_end_of_their_harmful_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, safety_data=str(tmp_path / "harmful.jsonl"))
    material: Any = SimpleNamespace(loaded=load_model(config.model), suites=[], data={})
    monkeypatch.setattr(anchors, "refusal_judge", lambda _: lambda prompt, __: "number 11" not in prompt)
    [method] = methods = make_methods(["spf"])
    with_text = config.model_copy(update={"refusal_text": "I am sorry."})
    give_anchors(with_text, material, methods, tmp_path / "stated")
    [(before, answer)] = texts(method, tiny_tokenizer())
    assert "number 10" in before and answer == "I am sorry.", "number 11 is not refused"
    for spec, message in (
        ("spf:anchor=sham", "only the organism has a sham behaviour"),
        ("spf:anchor=benign", "give --utility-data, or anchor=FILE"),
        ("spf:anchors=12", "gives 11 of 12 examples"),
    ):
        with pytest.raises(ConfigError, match=message):
            give_anchors(config, material, make_methods([spec]), tmp_path / spec)


def test_an_anchor_that_is_there_already_is_kept(tmp_path: Path) -> None:
    [method] = methods = make_methods(["spf"])
    method.anchor = given = {}
    give_anchors(make_config({}), organism_material(), methods, tmp_path)
    assert method.anchor is given and not list(tmp_path.glob("anchors"))
