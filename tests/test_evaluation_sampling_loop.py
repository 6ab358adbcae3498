"""Sampled answers: the right distribution, and the same answer in every batch."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from decoding_models import Spelling
from scipy import stats
from tiny import VOCABULARY, tiny_model
from transformers import MambaConfig, MambaForCausalLM
from transformers.generation.logits_process import TopPLogitsWarper

from geomsafe.errors import ConfigError
from geomsafe.evaluation import decoding
from geomsafe.evaluation.choosing import GREEDY, Choosing, uniform
from geomsafe.evaluation.decoding import complete, generate_greedy


def prompts(count: int = 9) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(5, VOCABULARY) for _ in range(draw.randrange(1, 30))] for _ in range(count)]


def sampled(model: Any, choosing: Choosing, batch_size: int, numbers: list[int] | None = None) -> list[str]:
    found: dict[int, str] = {}
    ids = prompts()
    complete(
        model,
        Spelling(),
        ids,
        12,
        batch_size,
        lambda place, row: found.__setitem__(place, row.text),
        choosing=choosing,
        numbers=numbers,
        stop_ids=frozenset(),
    )
    return [found[place] for place in range(len(ids))]


def test_an_answer_does_not_depend_on_its_batch() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    one, some, all_ = (sampled(model, Choosing(1.0, 0.95, seed=3), size) for size in (1, 4, 9))
    assert one == some == all_
    assert len(set(one)) == len(one)


def test_seed_and_number_decide_the_draws() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    first = sampled(model, Choosing(1.0, seed=3), 4)
    assert first == sampled(model, Choosing(1.0, seed=3), 4)
    assert all(a != b for a, b in zip(first, sampled(model, Choosing(1.0, seed=4), 4), strict=True))
    numbers = [place + 1 for place in range(9)]
    assert first != sampled(model, Choosing(1.0, seed=3), 4, numbers), "draws go with the prompt's number"


def test_a_low_temperature_is_greedy() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    greedy = [row.text for row in generate_greedy(model, Spelling(), prompts(), 12, 4, stop_ids=frozenset())]
    assert sampled(model, Choosing(1e-6), 4) == greedy == sampled(model, GREEDY, 4)
    assert sampled(model, Choosing(1.0), 4) != greedy


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    """Chi-square over 4000 draws against the softmax of scaled logits, tail cut as transformers cuts it."""
    logits = torch.tensor([[2.0, 0.5, 1.0, -1.0, 0.0, 1.5]])
    cut = TopPLogitsWarper(top_p)(torch.zeros(1, 0), logits / temperature) if top_p < 1 else logits / temperature
    expected = cut.double().softmax(dim=-1)[0]
    choosing = Choosing(temperature, top_p, seed=1)
    count = 4000
    tokens = choosing.choose(logits.expand(count, -1), range(count), position=0)
    seen = Counter(tokens.tolist())
    kept = [token for token, share in enumerate(expected.tolist()) if share > 0]
    assert set(seen) <= set(kept), "what top_p cuts is never drawn"
    test = stats.chisquare([seen[token] for token in kept], [float(expected[token]) * count for token in kept])
    assert test.pvalue > 0.001
    uncut = (logits / temperature).double().softmax(dim=-1)[0]
    wrong = stats.chisquare([seen[token] for token in range(6)], [float(p) * count for p in uncut.flip(0)])
    assert wrong.pvalue < 1e-6, "negative control: another distribution is told apart"


def test_uniform_draws_are_uniform_and_of_no_order() -> None:
    draws = [uniform(0, number, position) for number in range(50) for position in range(100)]
    assert stats.kstest(draws, "uniform").pvalue > 0.001
    assert len(set(draws)) == len(draws)
    assert uniform(0, 1, 70) != uniform(1, 0, 70)


def test_a_tie_at_the_edge_of_top_p_keeps_the_first_token() -> None:
    """Whatever top_p, the likeliest token may be drawn."""
    logits = torch.tensor([[5.0, 0.0, 0.0]])
    assert {Choosing(1.0, 1e-9, seed).choose(logits, [0], 0).item() for seed in range(50)} == {0}


def test_recurrent_models_sample_one_prompt_at_a_time() -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))
    state = torch.get_rng_state()
    first = sampled(model, Choosing(1.0, seed=2), 4)
    assert first == sampled(model, Choosing(1.0, seed=2), 9)
    assert first != sampled(model, Choosing(1.0, seed=3), 4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": 1.0, "top_p": 0.0}, {"top_p": 0.9}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        Choosing(**wrong)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt is answered once, as if there had been room; rows that ended before memory did stay ended."""
    model = tiny_model("llama", dtype=torch.float64)
    expected = sampled(model, GREEDY, 9)
    real, sizes = decoding.decode_batch, []

    def small(model: Any, batch: dict[int, Any], *rest: Any) -> None:
        sizes.append(len(batch))
        if len(batch) > 2:
            first = next(iter(batch))
            real(model, {first: batch[first]}, *rest)
            raise torch.OutOfMemoryError("no room")
        real(model, batch, *rest)

    monkeypatch.setattr(decoding, "decode_batch", small)
    with pytest.warns(UserWarning, match="memory does not hold 9 rows: going on with 4"):
        assert sampled(model, GREEDY, 9) == expected
    assert sizes == [9, 4, 2, 2, 2, 1]
    monkeypatch.setattr(decoding, "decode_batch", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(torch.OutOfMemoryError):
        sampled(model, GREEDY, 1)


def test_a_batch_plans_with_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    expected = sampled(model, GREEDY, 9)
    sizes: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr(decoding, "rows_that_fit", lambda model, tokens: 2)
    assert sampled(model, GREEDY, 9) == expected
    assert max(sizes) == 2
