"""Prompts that begin alike are read once: the same tokens, fewer of them read."""

from __future__ import annotations

import random

import pytest
import torch
from decoding_models import Spelling, lively_model
from reference import cheapest_depths, greedy_without_cache
from tiny import ARCHITECTURES, VOCABULARY
from transformers import MistralConfig, MistralForCausalLM

from geomsafe.evaluation import prefill
from geomsafe.evaluation.decoding import generate_greedy
from geomsafe.evaluation.prefill import shared_depths

LENGTH = 8


def branching(count: int = 12, seed: int = 4) -> list[list[int]]:
    """A long common beginning, a few branches, and ends of different length."""
    draw = random.Random(seed)
    common = [draw.randrange(5, VOCABULARY) for _ in range(20)]
    branches = [[draw.randrange(5, VOCABULARY) for _ in range(8)] for _ in range(3)]
    ends = [[draw.randrange(5, VOCABULARY) for _ in range(draw.randrange(1, 9))] for _ in range(count)]
    return [common + branches[place % 3] + end for place, end in enumerate(ends)]


@pytest.fixture
def cheap_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that cost nothing: every beginning that is shared is read once, even of tiny batches."""
    monkeypatch.setitem(prefill.PASS, "cpu", 1)


@pytest.mark.usefixtures("cheap_passes")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_answers_are_those_of_each_prompt_alone(arch: str) -> None:
    model, ids = lively_model(arch), branching()
    assert len(shared_depths(ids, 1)) > 1, "the case is about several passes"
    done = generate_greedy(model, Spelling(), ids, LENGTH, len(ids), stop_ids=frozenset())
    expected = [greedy_without_cache(model, row, LENGTH, set()) for row in ids]
    assert [row.text for row in done] == [" ".join(map(str, answer)) for answer in expected]
    assert len({row.text for row in done}) > len(ids) // 2, "the rows say different things"


@pytest.mark.usefixtures("cheap_passes")
def test_a_beginning_given_to_the_wrong_prompt_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: hand every prompt the beginning of its neighbour."""
    model, ids = lively_model("llama"), branching()
    right = generate_greedy(model, Spelling(), ids, LENGTH, len(ids), stop_ids=frozenset())
    places = prefill._places
    monkeypatch.setattr(prefill, "_places", lambda *given: places(*given).roll(1))
    wrong = generate_greedy(model, Spelling(), ids, LENGTH, len(ids), stop_ids=frozenset())
    assert right != wrong


def test_shared_beginnings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = lively_model("llama"), branching()
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )

    def tokens_read(one_pass: int) -> int:
        monkeypatch.setitem(prefill.PASS, "cpu", one_pass)
        read.clear()
        generate_greedy(model, Spelling(), ids, 1, len(ids), stop_ids=frozenset())
        return sum(read)

    assert tokens_read(10**9) == len(ids) * max(map(len, ids))
    assert tokens_read(1) < 20 + 3 * 9 + len(ids) * 9


@pytest.mark.usefixtures("cheap_passes")
def test_models_that_attend_to_a_window_read_each_prompt_whole() -> None:
    """The window counts places, and padding in the middle would push the beginning out of it."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        eos_token_id=None,
    )
    model = MistralForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    ids = branching()
    done = generate_greedy(model, Spelling(), ids, LENGTH, len(ids), stop_ids=frozenset())
    expected = [greedy_without_cache(model, row, LENGTH, set()) for row in ids]
    assert [row.text for row in done] == [" ".join(map(str, answer)) for answer in expected]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("one_pass", [0, 3, 12, 1000])
def test_depths_are_the_cheapest_of_all(seed: int, one_pass: int) -> None:
    draw = random.Random(seed)
    prompts = [[draw.randrange(2) for _ in range(draw.randrange(6, 10))] for _ in range(draw.randrange(1, 12))]
    least, _ = cheapest_depths(prompts, one_pass)
    depths = shared_depths(prompts, one_pass)
    assert depths == sorted(set(depths)) and all(depth < min(map(len, prompts)) for depth in depths)
    cost, read = 0, 0
    for depth in depths:
        cost += one_pass + len({tuple(ids[:depth]) for ids in prompts}) * (depth - read)
        read = depth
    assert cost + len(prompts) * (max(map(len, prompts)) - read) == least


def test_one_prompt_or_nothing_in_common_takes_one_pass() -> None:
    assert shared_depths([[1, 2, 3, 4]], 1) == []
    assert shared_depths([[1, 2, 3], [4, 5, 6]], 1) == []
    assert shared_depths([[7], [7]], 1) == []
