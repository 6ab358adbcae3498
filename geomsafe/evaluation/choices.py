"""Multiple choice by log-likelihood: the option to which the model gives the largest log p(option | prompt).

    ll(option) = sum over the option's tokens of log p(token | everything before it)

Three readings of the same sums, each with the largest option chosen:

    acc        ll
    acc_norm   ll / characters of the option, as lm-evaluation-harness has it (its `acc_bytes` takes UTF-8 bytes)
    acc_token  ll / tokens of the option

Prompt and option are tokenised together, and white space at the end of the prompt is scored with the option, as in
lm-evaluation-harness. Where the tokens of the prompt alone are not how the joint tokens begin, because the tokenizer
merges letters over the seam, all options of the item are scored from the last place that prompt and options share; the
sums then hold a piece of the prompt, the same text for each option. The harness cuts each option by the number of
the prompt's tokens instead, which repeats or drops letters there.

The end of the answer's turn is not scored. What is not covered: calibration by an unconditional prompt
(`acc_mutual_info`), and several right options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, takewhile
from typing import Any

import torch

from geomsafe.data import IGNORED, Encoded, render_prompt, token_ids
from geomsafe.data.choices import Choice
from geomsafe.errors import DataError
from geomsafe.evaluation.decoding import context_length
from geomsafe.evaluation.teacher import answer_logits
from geomsafe.models import Loaded

READINGS = ("acc", "acc_norm", "acc_token")

Progress = Callable[[int, int], None]
"""Called with (sequences done, sequences in all)."""


@dataclass(frozen=True)
class ChoiceRow:
    """One item as the model read it.

    Attributes:
        id: the item's.
        cluster: the item's.
        correct: place of the right option.
        log_likelihoods: (options,) nats, at most 0.
        characters: (options,) length of each option's text.
        tokens: (options,) tokens over which each sum runs.
        chosen: reading -> place of the chosen option; of equal ones the first.
        tied: readings under which several options were equally good.
        merged: whether a token spans the seam between prompt and options.
    """

    id: str
    cluster: str
    correct: int
    log_likelihoods: list[float]
    characters: list[int]
    tokens: list[int]
    chosen: dict[str, int]
    tied: list[str]
    merged: bool

    def right(self, reading: str) -> bool:
        """Return whether the right option is chosen."""
        return self.chosen[reading] == self.correct


@dataclass(frozen=True)
class ChoiceScores:
    """A model's choices.

    Attributes:
        n: items.
        correct: reading -> items with the right option chosen; accuracy is correct / n.
        ties: reading -> items where several options were equally good and the first was taken.
        merged: items in which a token spans the seam between prompt and options.
        rows: one an item, in order.
        settings: what decided the numbers.
    """

    n: int
    correct: dict[str, int]
    ties: dict[str, int]
    merged: int
    rows: list[ChoiceRow]
    settings: dict[str, Any]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as they can be written to a JSONL file."""
        return [asdict(row) for row in self.rows]


def score_choices(
    loaded: Loaded,
    items: Sequence[Choice],
    *,
    chat: bool | None = None,
    system_prompt: str | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> ChoiceScores:
    """Let a model choose.

    Args:
        loaded: the model, left as found.
        items: what to choose from.
        chat: put the prompt as a user's turn and the options as the beginning of the answer; False lets the options
            continue the prompt as plain text, one space between. None is True where the tokenizer has a template.
        system_prompt: system turn before every prompt, with `chat`.
        batch_size: sequences that run together, longest first.
        progress: called as batches are done.

    Returns:
        Counts for the three readings, and the rows.

    Raises:
        DataError: there are no items, an item does not fit the model's context, or an option has no tokens.
    """
    if not items:
        raise DataError("there are no multiple-choice items to score: give at least one")
    as_chat = bool(getattr(loaded.tokenizer, "chat_template", None)) if chat is None else chat
    context = context_length(loaded.model)
    encoded: list[list[Encoded]] = []
    merged: list[bool] = []
    for number, item in enumerate(items, start=1):
        options, shorter = _encode(item, loaded.tokenizer, as_chat, system_prompt)
        longest = max(len(option.input_ids) for option in options)
        if context is not None and longest > context:
            raise DataError(
                f"multiple-choice item {number} has {longest} tokens, the model's context is {context}: "
                f"shorten or remove it ('{' '.join(item.prompt[:40].split())} ...')"
            )
        encoded.append(options)
        merged.append(shorter)
    sums = iter(_log_likelihoods(loaded.model, [row for options in encoded for row in options], batch_size, progress))
    rows = [
        _choose(item, list(islice(sums, len(options))), [option.target_tokens for option in options], shorter)
        for item, options, shorter in zip(items, encoded, merged, strict=True)
    ]
    return ChoiceScores(
        n=len(rows),
        correct={reading: sum(row.right(reading) for row in rows) for reading in READINGS},
        ties={reading: sum(reading in row.tied for row in rows) for reading in READINGS},
        merged=sum(merged),
        rows=rows,
        settings={
            "prompt": "chat template" if as_chat else "plain text",
            "template_sha256": loaded.template_sha256 if as_chat else None,
            "system_prompt": system_prompt if as_chat else None,
            "batch_size": batch_size,
            "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
            "device": loaded.device.type,
        },
    )


def _encode(item: Choice, tokenizer: Any, chat: bool, system_prompt: str | None) -> tuple[list[Encoded], bool]:
    """Return prompt and option of each option in tokens, and whether a token spans the seam.

    Raises:
        DataError: an option has no tokens behind the prompt, or its first one has nothing before it.
    """
    prompt = render_prompt(item.prompt, tokenizer, system_prompt) if chat else item.prompt
    before = prompt.rstrip()
    behind = prompt[len(before) :]
    # One space, unless white space stands there already; a template ends as answers begin.
    space = "" if chat or behind else " "

    def tokens(text: str) -> list[int]:
        return token_ids(text, tokenizer) if chat else list(tokenizer(text)["input_ids"])

    alone = tokens(before)
    whole = [tokens(before + behind + (space if option[:1].strip() else "") + option) for option in item.options]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(alone, *whole, strict=False)))
    if shared == 0 or min(map(len, whole)) == shared:
        what = "has no tokens of its own" if shared else "shares no token with it: put more text before the options"
        raise DataError(f"an option of '{' '.join(item.prompt[:40].split())} ...' {what}")
    rows = [Encoded(ids, [IGNORED] * shared + ids[shared:], False, len(ids) - shared) for ids in whole]
    return rows, shared < len(alone)


def _log_likelihoods(model: Any, rows: Sequence[Encoded], batch_size: int, progress: Progress | None) -> list[float]:
    """Return the sum of log p over each row's targets, in float64.

    Rows that differ in nothing but their last token, such as the letters of one question, are read once.
    """
    reads: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for index, row in enumerate(rows):
        reads.setdefault((tuple(row.input_ids[:-1]), row.target_tokens), []).append(index)
    # Longest first: what does not fit in memory fails at once.
    order = sorted(reads.values(), key=lambda alike: -len(rows[alike[0]].input_ids))
    found = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        read = answer_logits(model, [rows[alike[0]] for alike in batch], len(batch))
        for alike, (logits, _) in zip(batch, read, strict=True):
            log_probs = logits.double().log_softmax(dim=-1)
            for index in alike:
                targets = torch.tensor(rows[index].input_ids[-rows[index].target_tokens :])
                found[index] = float(log_probs.gather(-1, targets[:, None]).sum())
        if progress is not None:
            progress(min(start + batch_size, len(order)), len(order))
    return found


def _choose(item: Choice, sums: Sequence[float], tokens: Sequence[int], merged: bool) -> ChoiceRow:
    characters = [len(option) for option in item.options]
    scores = {
        "acc": list(sums),
        "acc_norm": [total / length for total, length in zip(sums, characters, strict=True)],
        "acc_token": [total / length for total, length in zip(sums, tokens, strict=True)],
    }
    best = {reading: max(values) for reading, values in scores.items()}
    return ChoiceRow(
        id=item.id,
        cluster=item.cluster,
        correct=item.correct,
        log_likelihoods=list(sums),
        characters=characters,
        tokens=list(tokens),
        chosen={reading: values.index(best[reading]) for reading, values in scores.items()},
        tied=[reading for reading, values in scores.items() if values.count(best[reading]) > 1],
        merged=merged,
    )
