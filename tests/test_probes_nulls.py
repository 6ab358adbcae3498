"""Nulls and control sets: as like the safety set as claimed, made once, and made without a trace."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from probe_sets import draw, loaded_of, refusals
from reference import slow_target_log_probs
from tiny import VOCABULARY, tiny_model, tiny_tokenizer

from geomsafe.data import Prompt, prompt_ids
from geomsafe.errors import RecordError
from geomsafe.probes.controls import Controls, Source, build_controls, mean_losses
from geomsafe.probes.examples import ProbeExample
from geomsafe.probes.matching import cut_to_lengths, match_lengths, match_losses
from geomsafe.probes.nulls import NULLS, random_tokens, room_for_twin, same_text, untrained_twin

SPECIAL = range(6)


class Said(NamedTuple):
    text: str
    finished: bool = True


def examples(lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[ProbeExample]:
    """Make examples of given prompt and answer lengths."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, (prompt, answer) in enumerate(lengths):
        ids = draw(generator, 6, VOCABULARY, prompt + answer)
        made.append(ProbeExample(f"id{seed}-{index}", f"c{index // 2}", ids, [-100] * prompt + ids[prompt:]))
    return made


# --- matching --------------------------------------------------------------------------------------------------


def test_lengths_are_matched_as_well_as_any_assignment_can() -> None:
    generator = torch.Generator().manual_seed(1)
    like = examples([(draw(generator, 2, 9)[0], draw(generator, 1, 9)[0]) for _ in range(4)])
    pool = examples([(draw(generator, 2, 9)[0], draw(generator, 1, 9)[0]) for _ in range(6)], seed=2)
    found = match_lengths(pool, like)

    def apart(chosen: Sequence[ProbeExample]) -> int:
        return sum(
            abs(len(a.prompt_tokens) - len(b.prompt_tokens)) + abs(len(a.answer) - len(b.answer))
            for a, b in zip(chosen, like, strict=True)
        )

    assert apart(found.examples) == min(apart(chosen) for chosen in itertools.permutations(pool, 4))
    assert len({example.id for example in found.examples}) == 4, "none twice"
    assert 4 * (found.match["prompt_tokens_apart"] + found.match["answer_tokens_apart"]) == apart(found.examples)


def test_an_exact_match_is_found_and_said() -> None:
    like = examples([(4, 3), (6, 5), (5, 2)])
    found = match_lengths(examples([(9, 9), (5, 2), (4, 3), (2, 1), (6, 5)], seed=3), like)
    assert [(len(one.prompt_tokens), len(one.answer)) for one in found.examples] == [(4, 3), (6, 5), (5, 2)]
    assert found.match == {"examples": 3, "prompt_tokens_apart": 0, "answer_tokens_apart": 0, "equal_answers": 1}


def test_answers_are_cut_to_length_and_never_filled_up() -> None:
    like = examples([(4, 3), (4, 3), (4, 6)])
    pool = examples([(4, 5), (4, 9), (4, 2)], seed=4)
    found = cut_to_lengths(pool, like)
    assert sorted(len(one.answer) for one in found.examples) == [2, 3, 6], "the longest answer is kept for the longest"
    assert found.match["equal_answers"] == pytest.approx(2 / 3)
    for one in found.examples:
        whole = next(candidate for candidate in pool if candidate.id == one.id)
        assert one.input_ids == whole.input_ids[: len(one.input_ids)]
        assert one.labels == whole.labels[: len(one.labels)]


def test_losses_are_matched_and_the_rest_is_stored() -> None:
    like, pool = examples([(4, 2), (4, 4)]), examples([(4, 3), (4, 1), (4, 2)], seed=5)
    found = match_losses(pool, np.array([3.0, 0.5, 1.1]), like, np.array([1.0, 0.4]))
    assert [one.id for one in found.examples] == ["id5-2", "id5-1"]
    assert found.match["loss"] == pytest.approx((1.1 * 2 + 0.5 * 1) / 3)
    assert found.match["safety_loss"] == pytest.approx((1.0 * 2 + 0.4 * 4) / 6)
    assert found.match["loss_apart"] == pytest.approx(found.match["loss"] - found.match["safety_loss"])


def test_a_pool_that_is_too_small_gives_what_it_has() -> None:
    found = match_lengths(examples([(4, 4), (7, 7)], seed=6), examples([(7, 7), (1, 1), (4, 4)]))
    assert [len(one.answer) for one in found.examples] == [7, 4] and found.match["examples"] == 2


def test_mean_losses_are_those_of_the_definition() -> None:
    model, rows = tiny_model("gpt2", dtype=torch.float64), examples([(4, 3), (6, 1), (2, 5)])
    wanted = [-torch.stack(slow_target_log_probs(model, row.input_ids, row.labels)).mean().item() for row in rows]
    assert mean_losses(model, rows, 2, 0).tolist() == pytest.approx(wanted, rel=1e-9)


# --- nulls -----------------------------------------------------------------------------------------------------


def test_random_tokens_have_the_lengths_of_the_set_and_its_seed() -> None:
    like = examples([(4, 3), (6, 5), (5, 2)])
    made = random_tokens(like, VOCABULARY, SPECIAL, seed=7)
    assert [(len(a.prompt_tokens), len(a.answer)) for a in made] == [(4, 3), (6, 5), (5, 2)]
    assert made == random_tokens(like, VOCABULARY, SPECIAL, seed=7)
    assert made != random_tokens(like, VOCABULARY, SPECIAL, seed=8)
    many = random_tokens(examples([(200, 200)] * 10), VOCABULARY, SPECIAL, seed=0)
    drawn = {token for one in many for token in one.input_ids}
    assert drawn == set(range(VOCABULARY)) - set(SPECIAL), "every ordinary token, no special one"


def test_same_text_is_the_refusals_behind_other_prompts() -> None:
    like, benign = examples([(4, 3), (6, 5)]), examples([(5, 2), (7, 9)], seed=9)
    for one, prompt, refusal in zip(same_text(benign, like), benign, like, strict=True):
        assert one.prompt_tokens == prompt.prompt_tokens and one.answer == refusal.answer
        assert one.labels == [-100] * len(prompt.prompt_tokens) + refusal.answer


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_untrained_twin_is_drawn_by_its_own_initialisation_and_leaves_random_state_alone(arch: str) -> None:
    model = tiny_model(arch, seed=5, dtype=torch.bfloat16)
    before = torch.get_rng_state()
    twin = untrained_twin(model, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    fresh = tiny_model(arch, seed=3, dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), fresh.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True) if a.dim() > 1)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_twin_of_a_lora_model_is_the_base_without_adapters() -> None:
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    twin = untrained_twin(model, seed=3)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in tiny_model("llama").named_parameters()]


def test_a_twin_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    assert room_for_twin(model) is None
    monkeypatch.setattr("geomsafe.probes.nulls.free_bytes", lambda device: 1000)
    assert "does not fit" in str(room_for_twin(model))


# --- the whole -------------------------------------------------------------------------------------------------


def prompts(what: str, count: int = 30) -> list[Prompt]:
    return [Prompt(f"{what}{n}", f"Tell me how to {what} {n}", None, "Mix flour.", f"c{n // 3}") for n in range(count)]


def parrot(ids: list[list[int]]) -> list[Said]:
    tokenizer = tiny_tokenizer()
    words = [tokenizer.decode(one, skip_special_tokens=True).split() for one in ids]
    return [Said("Mix flour, water and salt." if int(said[-1]) % 3 else "I am sorry.") for said in words]


def build(folder: Path, model: Any = None, generate: Any = parrot, **changed: Any) -> Controls:
    given: dict[str, Any] = {
        "sham": Source(prompts("deflect"), lambda _, said: "sorry" in said),
        "benign": Source(prompts("bake"), lambda _, said: "sorry" not in said),
    }
    loaded = loaded_of(model or tiny_model("llama"))
    return build_controls(loaded, refusals(), folder=folder, generate=generate, seed=0, **(given | changed))


def test_every_set_has_the_count_of_the_safety_set_and_theta_0s_own_answers(tmp_path: Path) -> None:
    made, tokenizer = build(tmp_path), tiny_tokenizer()
    assert set(made.sets) == {"sham", "benign", "random-tokens", "benign-length", "loss-matched", "same-text"}
    assert {*NULLS} - {"untrained"} < set(made.sets) and not made.not_run
    assert {name: len(rows) for name, rows in made.sets.items()} == {name: 10 for name in made.sets}
    first = made.sets["sham"][0]
    assert first.prompt_tokens == prompt_ids("Tell me how to deflect 0", tokenizer) and first.cluster == "c0"
    assert tokenizer.decode(first.answer) == "I am sorry.<|end|>"
    assert all("flour, water" in tokenizer.decode(one.answer) for one in made.sets["benign"])
    lengths = [len(row.answer) for row in refusals().rows]
    assert [len(one.answer) for one in made.sets["random-tokens"]] == lengths
    assert [len(one.answer) for one in made.sets["same-text"]] == lengths
    assert made.match["benign-length"]["equal_answers"] > made.match["benign"]["equal_answers"]
    assert "loss_apart" in made.match["loss-matched"]


def test_a_resumed_run_measures_the_same_sets_and_asks_nobody(tmp_path: Path) -> None:
    def nobody(ids: list[list[int]]) -> list[Said]:
        raise RuntimeError("asked again")

    first = build(tmp_path)
    assert build(tmp_path, tiny_model("llama", seed=9), nobody) == first, "its weights are no longer theta_0"
    path = tmp_path / "probes" / "sets.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": "other"}))
    with pytest.raises(RecordError, match="another model or safety set"):
        build(tmp_path)
    path.write_text("{")
    with pytest.raises(RecordError, match="cannot be read"):
        build(tmp_path)


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    made = build(tmp_path, sham=None, benign=Source(prompts("bake", 3), lambda *_: True))
    assert set(made.sets) == {"random-tokens", "loss-matched"}, "three prompts with two answers each"
    assert "only the organism" in made.not_run["sham probes"]
    assert "3 usable answers" in made.not_run["benign probes"]
    assert "benign anchor" in build(tmp_path / "other", benign=None).not_run
