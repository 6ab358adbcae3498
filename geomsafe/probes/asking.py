"""Asking theta_0: which harmful prompts it refuses, and in which words.

Its answers are kept in the run (`probes/refusals.jsonl`, one row a prompt asked, refused or
not): a resumed run measures the same refusals although its model is no longer theta_0.
Who generates and who says what a refusal is comes from outside: both live in
`geomsafe.evaluation`, on the same floor of the house.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from geomsafe.data import Conversation, Encoded, Prompt, encode, prompt_ids
from geomsafe.errors import RecordError
from geomsafe.models import Loaded
from geomsafe.probes.openings import Opening, listed_compliance
from geomsafe.probes.refusals import Refusal, RefusalSet, refusal_set
from geomsafe.records import read_jsonl, write_jsonl

REFUSAL_TOKENS = 64
"""Tokens of a refusal that are generated and measured, at most; the first few decide it."""

MOST_ASKED = 8
"""Prompts asked for each refusal wanted, at most: a model that refuses little is found out soon."""

FILE = Path("probes") / "refusals.jsonl"


class Answer(Protocol):
    """What is needed of a generated answer; `geomsafe.evaluation.Completion` has it."""

    @property
    def text(self) -> str:
        """The answer without special tokens."""

    @property
    def finished(self) -> bool:
        """Whether an end token came, rather than the length limit."""


def build_refusals(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    count: int,
    *,
    folder: Path,
    generate: Callable[[list[list[int]]], Sequence[Answer]],
    refuses: Callable[[str, str], bool],
    max_length: int = 512,
    system_prompt: str | None = None,
    refusal_text: str | None = None,
    compliance: Sequence[Opening] | None = None,
) -> RefusalSet:
    """Ask theta_0 harmful prompts in their order until it has refused enough of them.

    Args:
        loaded: theta_0; on resume any weights, since the answers are read from the run.
        prompts: harmful prompts.
        count: refused prompts wanted; at most `MOST_ASKED` times as many are asked.
        folder: the run directory; answers are kept in its `probes/refusals.jsonl`.
        generate: greedy answers to prompts in tokens, `REFUSAL_TOKENS` long at most.
        refuses: whether a completion refuses, called with prompt and completion.
        max_length: longest prompt with refusal, in tokens.
        system_prompt: system turn of prompts that have none.
        refusal_text: one stated refusal that is measured on every refused prompt, instead of
            theta_0's own.
        compliance: openings of theta_base's compliance, where theta_base is known; else
            openings of a list.

    Returns:
        The safety probe set; its `reason` says why it cannot be used, where it cannot.
    """
    path = folder / FILE
    if path.exists():
        answers = _recalled(path, loaded, prompts)
    else:
        answers = _asked(loaded, prompts, count, generate, refuses, system_prompt)
        write_jsonl(path, answers)
    refused = [answer for answer in answers if answer["refused"]][:count]
    rows = []
    for answer in refused:
        text = answer["completion"] if refusal_text is None else refusal_text
        whole = answer["finished"] or refusal_text is not None
        system = answer["system"] or system_prompt
        encoded = target(answer["prompt"], system, text, loaded.tokenizer, max_length, whole)
        if any(label != -100 for label in encoded.labels):
            rows.append(
                Refusal(
                    answer["id"],
                    answer["cluster"],
                    answer["prompt"],
                    answer["completion"],
                    encoded.input_ids,
                    encoded.labels,
                )
            )
    if compliance is None:
        openings, source = listed_compliance(lambda text: _plain_ids(loaded.tokenizer, text)), "a list of openings"
    else:
        openings, source = tuple(compliance), "theta_base"
    return refusal_set(
        rows,
        asked=len(answers),
        left_out=sum(not answer["refused"] for answer in answers) + len(refused) - len(rows),
        compliance=openings,
        compliance_source=source,
        wanted=count,
    )


def _asked(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    count: int,
    generate: Callable[[list[list[int]]], Sequence[Answer]],
    refuses: Callable[[str, str], bool],
    system_prompt: str | None,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    candidates = prompts[: MOST_ASKED * count]
    while sum(row["refused"] for row in rows) < count and len(rows) < len(candidates):
        asked = candidates[len(rows) : len(rows) + count]
        ids = [prompt_ids(prompt.text, loaded.tokenizer, prompt.system or system_prompt) for prompt in asked]
        for prompt, answer in zip(asked, generate(ids), strict=True):
            rows.append({
                "id": prompt.id,
                "cluster": prompt.cluster,
                "prompt": prompt.text,
                "system": prompt.system,
                "completion": answer.text,
                "finished": answer.finished,
                "refused": refuses(prompt.text, answer.text),
                "fingerprint": loaded.fingerprint,
                "template_sha256": loaded.template_sha256,
            })  # fmt: skip
    return rows


def _recalled(path: Path, loaded: Loaded, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    rows = list(read_jsonl(path))
    for row, prompt in zip(rows, prompts, strict=False):
        given = (row["id"], row["fingerprint"], row["template_sha256"])
        if given != (prompt.id, loaded.fingerprint, loaded.template_sha256):
            raise RecordError(
                f"'{path}' holds refusals of another model, template or prompt set (prompt '{row['id']}'): "
                "start a new run directory"
            )
    return rows


def target(prompt: str, system: str | None, text: str, tokenizer: Any, max_length: int, whole: bool) -> Encoded:
    """Encode an answer on the same road that training examples take, so that it is measured as one would be trained.

    Args:
        prompt: the user's turn.
        system: the system turn, if any.
        text: the answer.
        tokenizer: a tokenizer with a chat template.
        max_length: longest prompt with answer, in tokens.
        whole: whether the answer has its end; one cut by the length limit has none.

    Returns:
        Tokens and labels.
    """
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
    encoded = encode(Conversation(turns, "", 0), tokenizer, max_length)
    if whole:
        return encoded
    # The end token that the template writes is not theta_0's.
    ends = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    length = len(encoded.input_ids)
    while length and encoded.labels[length - 1] in ends:
        length -= 1
    return Encoded(
        encoded.input_ids[:length],
        encoded.labels[:length],
        True,
        sum(label != -100 for label in encoded.labels[:length]),
    )


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
