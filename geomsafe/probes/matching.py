"""Choosing benign examples that are like the safety examples in length or in loss.

One candidate for each safety example, none twice, the sum of differences as small as it can be (linear assignment).
What is left of the difference is part of the result: a null is only as good as its match.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from geomsafe.probes.examples import ProbeExample

_SHORT = 1e3
"""Weight of a token that an answer lacks: it cannot be made up, while one too many can be cut."""


class Matched(NamedTuple):
    """Chosen examples, in the order of the safety examples they stand for, and how near they come."""

    examples: list[ProbeExample]
    match: dict[str, float]


def match_lengths(pool: Sequence[ProbeExample], like: Sequence[ProbeExample]) -> Matched:
    """Choose examples with nearly the prompt and answer lengths of others, whole as they are.

    Args:
        pool: candidates.
        like: the safety examples.

    Returns:
        At most one candidate for each; the mean differences in tokens.
    """
    apart = np.abs(_prompts(pool)[None] - _prompts(like)[:, None]) + np.abs(
        _answers(pool)[None] - _answers(like)[:, None]
    )
    chosen = [(row, pool[column]) for row, column in _assigned(apart)]
    return Matched([example for _, example in chosen], _lengths_apart([(like[row], made) for row, made in chosen]))


def cut_to_lengths(pool: Sequence[ProbeExample], like: Sequence[ProbeExample]) -> Matched:
    """Choose examples and cut their answers to the answer lengths of others.

    Args:
        pool: candidates; those with long enough answers are preferred.
        like: the safety examples.

    Returns:
        At most one candidate for each, no answer longer than the one it stands for; the mean differences in tokens.
    """
    missing = np.maximum(_answers(like)[:, None] - _answers(pool)[None], 0)
    apart = np.abs(_prompts(pool)[None] - _prompts(like)[:, None]) + _SHORT * missing
    pairs = []
    for row, column in _assigned(apart):
        example = pool[column]
        length = len(example.prompt_tokens) + min(len(like[row].answer), len(example.answer))
        cut = ProbeExample(example.id, example.cluster, example.input_ids[:length], example.labels[:length])
        pairs.append((like[row], cut))
    return Matched([cut for _, cut in pairs], _lengths_apart(pairs))


def match_losses(
    pool: Sequence[ProbeExample], losses: NDArray[np.float64], like: Sequence[ProbeExample], wanted: NDArray[np.float64]
) -> Matched:
    """Choose examples whose token-mean losses are nearly those of others, one by one and as a set.

    The assignment matches the distribution; single exchanges then bring the token-mean loss of the set as near as
    they can.

    Args:
        pool: candidates.
        losses: (candidates,) token-mean loss of each, nats.
        like: the safety examples.
        wanted: (examples,) token-mean loss of each safety example.

    Returns:
        At most one candidate for each; the token-mean loss of both sets, and the differences in tokens.
    """
    pairs = _assigned(np.abs(losses[None] - wanted[:, None]))
    of_like, tokens = _answers(like), _answers(pool)
    safety = float((wanted * of_like).sum() / of_like.sum())
    columns = _exchanged(np.array([column for _, column in pairs]), losses * tokens, tokens, safety)
    loss = float((losses * tokens)[columns].sum() / tokens[columns].sum())
    match = _lengths_apart([(like[row], pool[column]) for (row, _), column in zip(pairs, columns, strict=True)])
    match |= {"loss": loss, "safety_loss": safety, "loss_apart": loss - safety}
    return Matched([pool[column] for column in columns], match)


def _exchanged(
    chosen: NDArray[np.int64], sums: NDArray[np.float64], tokens: NDArray[np.float64], wanted: float
) -> NDArray[np.int64]:
    """Exchange one chosen candidate for one that is left, the best such pair first, while the mean comes nearer."""  # noqa: DOC201
    chosen = chosen.copy()
    while True:
        left = np.setdiff1d(np.arange(len(sums)), chosen)
        apart = abs(sums[chosen].sum() / tokens[chosen].sum() - wanted)
        if not len(left):
            return chosen
        total = sums[chosen].sum() - sums[chosen][:, None] + sums[left]
        count = tokens[chosen].sum() - tokens[chosen][:, None] + tokens[left]
        after = np.abs(total / count - wanted)
        place, candidate = np.unravel_index(int(after.argmin()), after.shape)
        if after[place, candidate] >= apart:
            return chosen
        chosen[place] = left[candidate]


def _assigned(cost: NDArray[np.float64]) -> list[tuple[int, int]]:
    rows, columns = linear_sum_assignment(cost)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def _lengths_apart(pairs: Sequence[tuple[ProbeExample, ProbeExample]]) -> dict[str, float]:
    prompts = [len(made.prompt_tokens) - len(wanted.prompt_tokens) for wanted, made in pairs]
    answers = [len(made.answer) - len(wanted.answer) for wanted, made in pairs]
    count = max(1, len(pairs))
    return {
        "examples": len(pairs),
        "prompt_tokens_apart": sum(map(abs, prompts)) / count,
        "answer_tokens_apart": sum(map(abs, answers)) / count,
        "equal_answers": sum(one == 0 for one in answers) / count,
    }


def _prompts(examples: Sequence[ProbeExample]) -> NDArray[np.float64]:
    return np.array([len(example.prompt_tokens) for example in examples], dtype=np.float64)


def _answers(examples: Sequence[ProbeExample]) -> NDArray[np.float64]:
    return np.array([len(example.answer) for example in examples], dtype=np.float64)
