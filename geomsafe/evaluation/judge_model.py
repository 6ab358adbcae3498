"""A judge's own model: loaded when it is first asked, from a folder or the hub, in one piece on one device."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from geomsafe.data.chat import render, token_ids
from geomsafe.data.rows import Message
from geomsafe.errors import ModelError
from geomsafe.evaluation.decoding import context_length
from geomsafe.evaluation.verdicts import Case, Judged, Verdict
from geomsafe.models import find_device, fingerprint, model_folder, no_loading_bars
from geomsafe.models.chat import set_chat_template, set_padding
from geomsafe.models.loading import DTYPES
from geomsafe.models.sources import explained

T = TypeVar("T")


@dataclass
class JudgeModel:
    """Where a judge's model is, and the model once it is loaded.

    Attributes:
        judge: the judge's name, for messages.
        name: local folder or hub name.
        revision: hub branch, tag or commit.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 on CUDA, else float32.
        device: `auto` or a torch device.
        chat_template: Jinja file, for a tokenizer without a template or instead of its own.
    """

    judge: str
    name: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    chat_template: Path | None = None
    _model: Any = field(default=None, repr=False)
    _tokenizer: Any = field(default=None, repr=False)
    _observed: dict[str, Any] = field(default_factory=dict, repr=False)

    def load(self, kind: Literal["causal", "classifier"]) -> tuple[Any, Any]:
        """Return model and tokenizer, loaded at the first call.

        Args:
            kind: what the model does.

        Returns:
            The model in evaluation mode without gradients, and its tokenizer.

        Raises:
            ModelError: the model or its tokenizer is missing or cannot be used; names the judge.
        """
        if self._model is None:
            try:
                with no_loading_bars():
                    self._model, self._tokenizer = self._loaded(kind)
            except ModelError as error:
                raise ModelError(f"judge '{self.judge}': {error}") from None
        return self._model, self._tokenizer

    def release(self) -> None:
        """Forget the model, so that its memory can be used; what was observed of it stays."""
        self._model = self._tokenizer = None

    def settings(self) -> dict[str, Any]:
        """Return what is recorded: what was asked for, and under `observed` what was loaded (empty before)."""
        return {
            "model": self.name,
            "revision": self.revision,
            "dtype": self.dtype,
            "device": self.device,
            "chat_template": str(self.chat_template) if self.chat_template else None,
            "observed": dict(self._observed),
        }

    def chat_ids(self, messages: list[Message], *, opening: bool = True) -> list[int]:
        """Write turns with the judge's chat template.

        Args:
            messages: the turns.
            opening: add the opening of the judge's own turn.

        Returns:
            The tokens.

        Raises:
            ModelError: there is no template.
        """
        tokenizer = self._tokenizer
        if "chat_template_sha256" not in self._observed:
            try:
                self._observed["chat_template_sha256"] = set_chat_template(tokenizer, self.name, self.chat_template)
            except ModelError as error:
                said = str(error).replace("--chat-template FILE", "chat_template: FILE")
                raise ModelError(f"judge '{self.judge}': {said}") from None
        return token_ids(render(messages, tokenizer, generation_prompt=opening), tokenizer)

    def context(self) -> int | None:
        """Return how many tokens the judge reads: the smaller of what model and tokenizer say, None without limit."""
        # A tokenizer without a limit says 1e30.
        said = [context_length(self._model), self._tokenizer.model_max_length]
        known = [int(length) for length in said if length is not None and length < 1e9]
        return min(known, default=None)

    def _loaded(self, kind: Literal["causal", "classifier"]) -> tuple[Any, Any]:
        """Load model and tokenizer.

        Raises:
            ModelError: they are missing or cannot be used.
        """  # noqa: DOC201
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        device = find_device(self.device)
        dtype = self.dtype if self.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
        folder = model_folder(self.name)
        where = str(folder) if folder is not None else self.name
        pinned = {"revision": self.revision} if folder is None else {}
        auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
        # transformers and the hub raise many kinds of errors on the way: `explained` tells them apart.
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, **pinned)
            model, report = auto.from_pretrained(where, dtype=DTYPES[dtype], output_loading_info=True, **pinned)
        except Exception as error:
            raise ModelError(explained(self.name, self.revision, error)) from None
        missing = sorted(report["missing_keys"])
        if missing:
            what = "generates no text" if kind == "causal" else "is no classifier"
            raise ModelError(f"model '{self.name}' {what} or is incomplete: it lacks '{missing[0]}', give another one")
        set_padding(tokenizer, model.get_input_embeddings().weight.shape[0])
        self._observed = {
            "revision": getattr(model.config, "_commit_hash", None) if folder is None else None,
            "fingerprint": fingerprint(model),
            "dtype": dtype,
            "device": device.type,
        }
        return model.to(device).eval().requires_grad_(False), tokenizer


def longest_first(
    cases: Sequence[Case],
    read: Callable[[Case], tuple[T | None, str]],
    length: Callable[[T], int],
    batch_size: int,
    verdict: Verdict,
) -> Iterator[list[tuple[int, T, str]]]:
    """Yield cases in batches, the longest first: what does not fit in memory fails at once.

    Args:
        cases: what to judge.
        read: returns a case as the judge reads it, None where it cannot, and why or what was cut.
        length: of what was read, in tokens.
        batch_size: cases of a batch.
        verdict: called at once with "undecided" for what cannot be read.

    Yields:
        (place, what was read, what was cut) of each case of a batch.
    """
    asked: list[tuple[int, T, str]] = []
    for place, case in enumerate(cases):
        found, note = read(case)
        if found is None:
            verdict(place, Judged("undecided", note))
        else:
            asked.append((place, found, note))
    asked.sort(key=lambda one: (-length(one[1]), one[0]))
    for start in range(0, len(asked), batch_size):
        yield asked[start : start + batch_size]


def fitting(completion: str, limit: int | None, length: Callable[[str], int]) -> tuple[str | None, str]:
    """Cut a completion at its end so that the judge can read the whole case.

    Args:
        completion: what is judged.
        limit: tokens that the judge reads, None for any number.
        length: tokens of the whole case with a completion; grows with it.

    Returns:
        The completion, as long as fits, None where nothing of it does; and what was done, "" for nothing.
    """
    if limit is None or length(completion) <= limit:
        return completion, ""
    fits = bisect_right(range(len(completion) + 1), limit, key=lambda end: length(completion[:end])) - 1
    if fits < 1:
        return None, f"the prompt leaves no room for the completion in the {limit} tokens that the judge reads"
    return completion[:fits], f"completion cut from {len(completion)} to {fits} characters"
