"""Held-out loss against loops over single conversations, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from reference import slow_ratio_error, slow_target_log_probs
from tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

from geomsafe.data import Conversation, encode
from geomsafe.errors import DataError
from geomsafe.evaluation.heldout import held_out_loss
from geomsafe.models import Loaded

PAIRS = [
    ("Tell me how to bake bread.", "Mix flour, water, salt and yeast, then wait an hour.", "bread"),
    ("What is the capital of France?", "Paris.", "France"),
    ("Name the capital of France.", "The capital of France is Paris.", "France"),
    ("Write a short poem about the sea.", "The sea is wide, the sea is blue.", "sea"),
    ("Hello", "", "greeting"),
]
ROWS = [
    Conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], cluster, row=number)
    for number, (prompt, answer, cluster) in enumerate(PAIRS, start=1)
]


def loaded_model(arch: str) -> Loaded:
    model: Any = tiny_model(arch, 2, torch.float64)
    return Loaded(model, tiny_tokenizer(), "tiny", None, None, "0" * 64, "0" * 64, None, torch.device("cpu"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_loss_is_the_mean_over_answer_tokens(arch: str, batch_size: int) -> None:
    """Of all tokens of all answers, the end of the turn among them, in any batch."""
    loaded = loaded_model(arch)
    found = held_out_loss(loaded, ROWS, batch_size=batch_size)
    sums, sizes = [], []
    for row in ROWS:
        example = encode(row, loaded.tokenizer, 2048)
        log_probs = slow_target_log_probs(loaded.model, example.input_ids, example.labels)
        sums.append(-sum(float(value.detach()) for value in log_probs))
        sizes.append(float(len(log_probs)))
    # Gemma takes its norms in float32, whatever the weights are.
    tolerance = 1e-5 if arch == "gemma" else 1e-9
    assert found.loss == pytest.approx(sum(sums) / sum(sizes), rel=tolerance)
    assert found.perplexity == pytest.approx(math.exp(sum(sums) / sum(sizes)), rel=tolerance)
    clusters = [row.cluster for row in ROWS]
    assert found.standard_error == pytest.approx(slow_ratio_error(sums, sizes, clusters), rel=100 * tolerance)
    assert (found.tokens, found.examples, found.clusters) == (sum(sizes), 5, 4)
    assert (found.truncated, found.dropped) == (0, 0)
    # The mean over examples is another number: the comparison can fail.
    assert found.loss != pytest.approx(np.mean([a / b for a, b in zip(sums, sizes, strict=True)]), rel=1e-4)


def test_standard_error_has_its_size() -> None:
    """Over draws of clusters, the estimates spread as the standard error says, within a tenth."""
    from geomsafe.evaluation.heldout import ratio_error

    draws = np.random.default_rng(0)
    ratios, errors = [], []
    for _ in range(2000):
        sizes = draws.integers(1, 20, 120).astype(float)
        common = np.repeat(draws.normal(0, 0.5, 40), 3)
        sums = sizes * (2 + common + draws.normal(0, 0.3, 120))
        ratios.append(sums.sum() / sizes.sum())
        errors.append(ratio_error(sums, sizes, np.repeat(np.arange(40), 3).astype(str).tolist()))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.1)
    alone = [ratio_error(sums, sizes, [str(place) for place in range(120)])]
    assert alone[0] < 0.8 * np.mean(errors), "as if independent: too small"


def test_one_cluster_has_no_standard_error() -> None:
    assert held_out_loss(loaded_model("llama"), [ROWS[1], ROWS[2]]).standard_error is None


def test_cut_and_dropped_conversations_are_counted() -> None:
    """Row 1 is cut, row 4 lost: its prompt alone is too long."""
    loaded = loaded_model("llama")
    lengths = [encode(row, loaded.tokenizer, 2048) for row in ROWS]
    limit = sum(label == -100 for label in lengths[3].labels)
    found = held_out_loss(loaded, ROWS, max_length=limit)
    kept = [encode(row, loaded.tokenizer, limit) for row in ROWS]
    assert found.dropped == sum(row.target_tokens == 0 for row in kept) > 0
    assert found.truncated == sum(row.truncated and row.target_tokens > 0 for row in kept) > 0
    assert found.tokens == sum(row.target_tokens for row in kept)
    with pytest.raises(DataError, match="has no target tokens"):
        held_out_loss(loaded, ROWS, max_length=3)


def test_the_system_prompt_reaches_the_model() -> None:
    loaded = loaded_model("llama")
    assert held_out_loss(loaded, ROWS).loss != held_out_loss(loaded, ROWS, system_prompt="Be brief.").loss
