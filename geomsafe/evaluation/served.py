"""A model behind an OpenAI-compatible server as the engine that answers.

The server renders the chat template and decodes; what it does not tell, its weights and its template, cannot be part
of an answer's identity. So the record names the server's model and whatever fingerprint it gives, and numbers from
here are compared with those of loaded models only where mixing is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geomsafe.data import Prompt
from geomsafe.data.rows import Message
from geomsafe.errors import ConfigError
from geomsafe.evaluation.attacks import Attempt
from geomsafe.evaluation.choosing import GREEDY, Choosing
from geomsafe.evaluation.decoding import Completion
from geomsafe.evaluation.engines import Ended
from geomsafe.evaluation.identity import EVALUATION_VERSION, deciding
from geomsafe.evaluation.request import Request
from geomsafe.evaluation.score import Progress, Scored, evaluate_engine
from geomsafe.evaluation.server import ChatServer
from geomsafe.evaluation.suite_file import read_suite, suites_of
from geomsafe.evaluation.suites import named_suites
from geomsafe.models import Loaded
from geomsafe.records import content_sha256


@dataclass(frozen=True)
class Conversing:
    """Turns up to the user's, and the words with which the answer has begun."""

    messages: list[Message]
    opening: str = ""


@dataclass(frozen=True)
class ServerEngine:
    """A model that answers over HTTP.

    Attributes:
        server: where it is.
        max_new_tokens: longest answer in tokens.
        batch_size: how many requests run at a time; set with the server.
        system_prompt: system turn before prompts that have none of their own.
        choosing: temperature, top_p and seed, as they are sent; the draws are the server's.
    """

    server: ChatServer
    max_new_tokens: int = 512
    batch_size: int = 8
    system_prompt: str | None = None
    choosing: Choosing = GREEDY

    @property
    def loaded(self) -> Loaded | None:
        """Nothing: the model is elsewhere."""
        return None

    def ask(self, prompts: Sequence[Prompt], attempts: Sequence[Attempt], source: str) -> list[Conversing | None]:
        """Write attempts as conversations; how long they may be is known to the server alone.

        Args:
            prompts: the prompts.
            attempts: (prompts,) how each is put.
            source: plays no part.

        Returns:
            One conversation a prompt.
        """
        return [
            Conversing(self._turns(prompt, attempt.text), attempt.opening)
            for prompt, attempt in zip(prompts, attempts, strict=True)
        ]

    def settings(self) -> dict[str, Any]:
        """Return the server's address and model and the settings that are sent."""
        sent = self.server.settings(
            max_new_tokens=self.max_new_tokens, temperature=self.choosing.temperature, top_p=self.choosing.top_p
        )
        return sent | {
            "version": EVALUATION_VERSION,
            "engine": "openai",
            "template_sha256": None,
            "system_prompt": self.system_prompt,
            **self.choosing.settings(),
        }

    def identity(self, questions: Sequence[Conversing]) -> dict[str, Any]:
        """Return conversations and settings, without what the server says of itself while it answers."""
        asked = content_sha256([question.messages, question.opening] for question in questions)
        return {"conversations_sha256": asked, **deciding(self.settings())}

    def answer(
        self,
        questions: Sequence[Conversing],
        numbers: Sequence[int],
        settled: Callable[[str], bool] | None,
        ended: Ended,
    ) -> None:
        """Send the questions, several at a time; answers come whole.

        Args:
            questions: from `ask`.
            numbers: plays no part: the server draws.
            settled: plays no part.
            ended: called once a question.
        """
        openings = [question.opening for question in questions]

        def done(place: int, completion: Completion) -> None:
            ended(place, replace(completion, text=openings[place] + completion.text))

        self.server.answer(
            [question.messages for question in questions],
            max_new_tokens=self.max_new_tokens,
            done=done,
            temperature=self.choosing.temperature,
            top_p=self.choosing.top_p,
            seed=None if self.choosing.greedy else self.choosing.seed,
            opening=openings if any(openings) else None,
        )

    def _turns(self, prompt: Prompt, text: str) -> list[Message]:
        system = prompt.system or self.system_prompt
        turns = [{"role": "system", "content": system}] if system else []
        return [*turns, {"role": "user", "content": text}]


def score_server(
    model: str, base_url: str, weights: str, asked: Request, folder: Path, progress: Progress | None
) -> list[Scored]:
    """Score a model behind a server.

    Args:
        model: the server's name for it.
        base_url: the server's address.
        weights: what its weights are called.
        asked: prompts, judges and settings.
        folder: run directory.
        progress: called as answers come.

    Returns:
        One evaluation a suite, with the judges that are still to speak.

    Raises:
        ConfigError: there are no prompts, or a setting is given that only a loaded model has.
    """
    foreign = sorted(set(asked.given) & {"dtype", "chat_template", "trust_remote_code"})
    if foreign:
        raise ConfigError(f"'{foreign[0]}' is for models that are loaded here: set it where the server is started")
    if asked.measures:
        raise ConfigError(f"'{asked.measures[0].name}' is measured on a model that is loaded here, not behind a server")
    spec = read_suite(asked.suite, organism=False) if asked.suite is not None else None
    suites = suites_of(spec, None, model) if spec is not None else named_suites(asked.prompts, None, model)
    if not suites:
        raise ConfigError(f"nothing to score '{model}' on: name prompts, as in '--prompts harmful=FILE', or a suite")
    together = asked.setting("batch_size", None, 8)
    engine = ServerEngine(
        ChatServer(base_url, model, concurrency=together),
        asked.setting("max_new_tokens", spec, 512),
        together,
        asked.given.get("system_prompt"),
        asked.choosing(spec),
    )
    return evaluate_engine(
        engine,
        suites,
        folder,
        weights,
        limit=asked.given.get("limit"),
        judges=asked.refusal_judges,
        progress=progress,
    )
