"""Judges that answer in words: a local causal language model, or one behind a server, asked by a template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geomsafe.errors import ConfigError
from geomsafe.evaluation.decoding import Completion, generate_greedy, stop_token_ids
from geomsafe.evaluation.judge_model import JudgeModel, fitting, longest_first
from geomsafe.evaluation.judge_templates import VALUES, JudgeTemplate
from geomsafe.evaluation.server import ChatServer
from geomsafe.evaluation.verdicts import Case, Judged, Verdict


class GenerativeJudge:
    """A local causal language model that answers a template greedily; see `judge_templates` for what it can say.

    Verdicts come batch by batch, the longest cases first. A case that does not fit in the judge's context loses the
    end of its completion, and the rule says so.
    """

    values = VALUES

    def __init__(self, name: str, template: JudgeTemplate, model: JudgeModel, batch_size: int = 8) -> None:
        """Keep the parts; the model is loaded at the first case.

        Args:
            name: name in rows and scores.
            template: how it is asked.
            model: who is asked.
            batch_size: cases that run together.
        """
        self.name = name
        self._template = template
        self._source = model
        self._batch_size = batch_size

    def judge_cases(self, cases: Sequence[Case], verdict: Verdict) -> None:
        """Judge every case.

        Args:
            cases: what to judge.
            verdict: called once a case.

        Raises:
            ModelError: the model cannot be loaded or has no chat template where one is needed.
            ConfigError: the longest answer fills the judge's whole context.
        """  # noqa: DOC502 - JudgeModel raises the first
        if not cases:
            return
        model, tokenizer = self._source.load("causal")
        stops = stop_token_ids(model, tokenizer)
        context, longest = self._source.context(), self._template.max_new_tokens
        if context is not None and context <= longest:
            raise ConfigError(
                f"judge '{self.name}': max_new_tokens = {longest} fills its context of {context} tokens: lower it"
            )
        limit = None if context is None else context - longest
        for batch in longest_first(cases, lambda case: self._ids(case, limit), len, self._batch_size, verdict):
            answers = generate_greedy(
                model,
                tokenizer,
                [ids for _, ids, _ in batch],
                self._template.max_new_tokens,
                self._batch_size,
                stop_ids=stops,
            )
            for (place, _, note), answer in zip(batch, answers, strict=True):
                verdict(place, judged(self._template, answer, note))

    def settings(self) -> dict[str, Any]:
        """Return model, template and limits; `observed` fills when the model is loaded, all else stays the same."""
        return {
            "type": "generative",
            **self._template.settings(),
            **self._source.settings(),
            "decoding": "greedy",
            "batch_size": self._batch_size,
        }

    def release(self) -> None:
        """Free the model's memory; the next case loads it again."""
        self._source.release()

    def _ids(self, case: Case, limit: int | None) -> tuple[list[int] | None, str]:
        """Return the tokens that put a case to the judge, None where it does not fit, and what was cut."""
        kept, note = fitting(case.completion, limit, lambda text: len(self._render(case._replace(completion=text))))
        return (None if kept is None else self._render(case._replace(completion=kept))), note

    def _render(self, case: Case) -> list[int]:
        plain = self._template.plain_text(case)
        if plain is None:
            return self._source.chat_ids(self._template.messages(case))
        _, tokenizer = self._source.load("causal")
        return list(tokenizer(plain)["input_ids"])


class ServerJudge:
    """A model behind a server, asked by a template; verdicts come as its answers do."""

    values = VALUES

    def __init__(
        self, name: str, template: JudgeTemplate, server: ChatServer, max_completion_chars: int | None = None
    ) -> None:
        """Keep the parts; nothing is sent yet.

        Args:
            name: name in rows and scores.
            template: how it is asked; its turns are written by the server's own chat template.
            server: who is asked.
            max_completion_chars: longer completions lose their end, which the rule says. How many tokens a server
                reads cannot be asked, so a case that is too long for it is an error without this.
        """
        self.name = name
        self._template = template
        self._server = server
        self._max_chars = max_completion_chars

    def judge_cases(self, cases: Sequence[Case], verdict: Verdict) -> None:
        """Judge every case.

        Args:
            cases: what to judge.
            verdict: called once a case.

        Raises:
            ServerError: the server fails; verdicts given before that were handed over.
        """  # noqa: DOC502 - ChatServer raises it
        fitted = [fitting(case.completion, self._max_chars, len) for case in cases]
        self._server.answer(
            [
                self._template.messages(case._replace(completion=kept or ""))
                for case, (kept, _) in zip(cases, fitted, strict=True)
            ],
            max_new_tokens=self._template.max_new_tokens,
            done=lambda place, answer: verdict(place, judged(self._template, answer, fitted[place][1])),
        )

    def settings(self) -> dict[str, Any]:
        """Return server, template and limits; `observed` fills as answers come, all else stays the same."""
        return {
            "type": "server",
            **self._template.settings(),
            **self._server.settings(max_new_tokens=self._template.max_new_tokens),
            "max_completion_chars": self._max_chars,
        }


def judged(template: JudgeTemplate, answer: Completion, note: str = "") -> Judged:
    """Read a judge's answer.

    Args:
        template: how it was asked.
        answer: what it said.
        note: what was done to the case, for the rule.

    Returns:
        The verdict.
    """
    found = template.parse(answer.text)
    notes = [found.rule, note]
    if found.value == "undecided" and not answer.finished:
        notes.append(f"judge's answer cut at {answer.tokens} tokens")
    return Judged(found.value, "; ".join(text for text in notes if text))
