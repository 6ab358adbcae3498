"""Exact early stop: generation ends where no further word can change a verdict.

A completion in which a refusal keyword has appeared can never lose it, and one whose opening is no
refusal never gains one. So a row may stop once every judge is settled, with the same verdicts as the
whole answer. It holds only where text grows at its end: the text of some tokens has to begin every
text of those and more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

UNFINISHED = "�"
"""What a decoder writes for the first bytes of a character whose last are still to come."""


@runtime_checkable
class Settling(Protocol):
    """A judge that knows when more text cannot change its verdict."""

    def settled(self, text: str) -> bool:
        """Return whether every text that begins with `text` gets the verdict of `text`."""


def early_stop(tokenizer: Any, judges: Sequence[object]) -> Callable[[str], bool] | None:
    """Return the test under which a row may stop, None where some judge needs the whole text.

    Args:
        tokenizer: the tokenizer whose texts are tested.
        judges: every judge that is to read the answers.

    Returns:
        A function of the text so far; None also where nobody judges, or the tokenizer rewrites text it has written.
    """
    settling = [judge for judge in judges if isinstance(judge, Settling)]
    if not settling or len(settling) < len(judges) or rewrites(tokenizer):
        return None

    def settled(text: str) -> bool:
        known = text.rstrip(UNFINISHED)
        return all(judge.settled(known) for judge in settling)

    return settled


def rewrites(tokenizer: Any) -> bool:
    """Return whether later tokens may change text that earlier ones gave, as clean-up of spaces does."""
    return bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
