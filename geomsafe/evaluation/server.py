"""Asking a model that runs behind an OpenAI-compatible server (vLLM, llama.cpp, Ollama, OpenAI).

Several requests run at a time; every answer is handed over as soon as it is there, so that nothing which
came is lost when the server dies or the user presses Ctrl-C. Retries (connection, time-out, 408, 409, 429, 5xx)
are those of the `openai` client.

What is not covered: streaming, tools, images, and models that take `max_completion_tokens` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from geomsafe.data.rows import Message
from geomsafe.errors import ConfigError, ServerError
from geomsafe.evaluation.decoding import Completion
from geomsafe.evaluation.server_errors import no_answer, what_happened

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY_VARIABLE = "OPENAI_API_KEY"
AGAIN = "run the same command again: what is done is kept"

Done = Callable[[int, Completion], None]
"""Called with (place of the conversation, answer) as soon as an answer is there, in the caller's own thread."""


class ChatServer:
    """A model behind /v1/chat/completions.

    Attributes:
        model: the model's name, as the server knows it.
        url: the server's address without credentials and query, as it is shown and recorded.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 5,
        concurrency: int = 8,
    ) -> None:
        """Remember where the server is; nothing is sent yet.

        Args:
            base_url: such as http://localhost:8000/v1.
            model: the model's name.
            api_key: the key (default: `$OPENAI_API_KEY`; without it none is needed). It is neither shown nor recorded.
            timeout: seconds until one try is given up.
            max_retries: tries after the first, with growing pauses between them.
            concurrency: requests that run at a time.

        Raises:
            ConfigError: the address is no http address or a number is out of range.
        """
        parts = urlsplit(base_url)
        host = parts.netloc.rpartition("@")[2]
        self.url = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        if parts.scheme not in {"http", "https"} or not host or not _has_a_port(parts):
            shown = base_url.rpartition("@")[2].partition("?")[0]
            raise ConfigError(f"server address '{shown}' is no http address: write it as http://localhost:8000/v1")
        if timeout <= 0 or max_retries < 0 or concurrency < 1:
            raise ConfigError(
                f"server '{self.url}': timeout ({timeout}) and concurrency ({concurrency}) must be positive, "
                f"max_retries ({max_retries}) not negative"
            )
        self.model = model
        self._base_url = base_url
        self._key = api_key or os.environ.get(KEY_VARIABLE) or None
        self._timeout = timeout
        self._max_retries = max_retries
        self._concurrency = concurrency
        self._models: set[str] = set()
        self._fingerprints: set[str] = set()

    def answer(
        self,
        conversations: Sequence[list[Message]],
        *,
        max_new_tokens: int,
        done: Done,
        temperature: float | Sequence[float] = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        opening: Sequence[str] | None = None,
    ) -> None:
        """Answer conversations, in any order.

        When it fails or is interrupted, requests under way are cancelled; answers that came were handed over.

        Args:
            conversations: turns, the last one the user's (or the assistant's, for judges that read a conversation).
            max_new_tokens: longest answer.
            done: called once a conversation; the text is what the server wrote, without the opening.
            temperature: 0 for the likeliest answer; one for all or one a conversation.
            top_p: share of the probability that is sampled from.
            seed: of the server's sampling, where it knows one.
            opening: words with which each answer has begun and is continued, "" for none (vLLM's
                `continue_final_message`; a server that ignores the setting begins a new answer instead).

        Raises:
            ServerError: the server cannot be reached, refuses or answers nonsense, retries included.
        """  # noqa: DOC502 - _answer_one raises it
        temperatures = [temperature] * len(conversations) if isinstance(temperature, int | float) else temperature
        openings = [""] * len(conversations) if opening is None else opening
        common = {"model": self.model, "max_tokens": max_new_tokens, "top_p": top_p}
        if seed is not None:
            common["seed"] = seed
        requests = [
            common | {"temperature": heat} | _turns(turns, words)
            for turns, heat, words in zip(conversations, temperatures, openings, strict=True)
        ]
        with self._asking(requests) as waiting:
            _hand_over(waiting, done)

    def settings(
        self,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Return what decides an answer, as it is recorded.

        Args:
            max_new_tokens: as given to `answer`; left out where None.
            temperature: as given to `answer`.
            top_p: as given to `answer`.
            seed: as given to `answer`.

        Returns:
            JSON values. `observed` is what answers have said of themselves so far (empty before the first); all
            else is the same before and after.
        """
        length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        return {
            "engine": "openai",
            "base_url": self.url,
            "model": self.model,
            "client": f"openai {_client().__version__}",
            **length,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "observed": {"model": sorted(self._models), "system_fingerprint": sorted(self._fingerprints)},
        }

    @contextmanager
    def _asking(self, requests: Sequence[dict[str, Any]]) -> Iterator[dict[Future[Completion], int]]:
        """Send requests from an event loop in a thread of its own, so that a notebook's loop is not in the way."""  # noqa: DOC402
        openai = _client()
        # anyio comes with the client.
        from anyio import Semaphore
        from anyio.from_thread import start_blocking_portal

        # A thread cannot be stopped in the middle of a request, a task can.
        with start_blocking_portal() as portal:
            client = portal.call(
                lambda: openai.AsyncOpenAI(
                    base_url=self._base_url,
                    api_key=self._key or "none",
                    timeout=self._timeout,
                    max_retries=self._max_retries,
                )
            )
            gate = portal.call(lambda: Semaphore(self._concurrency))
            waiting = {
                portal.start_task_soon(self._answer_one, client, gate, request): place
                for place, request in enumerate(requests)
            }
            try:
                yield waiting
            finally:
                for future in waiting:
                    future.cancel()
                portal.call(client.close)

    async def _answer_one(self, client: AsyncOpenAI, gate: Any, request: dict[str, Any]) -> Completion:
        """Ask once.

        Returns:
            The answer.

        Raises:
            ServerError: there is none.
        """
        from openai import OpenAIError

        async with gate:
            try:
                response: Any = await client.chat.completions.create(**request)
            # ValueError: a body that is called JSON and is none.
            except (OpenAIError, ValueError) as error:
                happened = what_happened(error, self.model, self._key, continued="extra_body" in request)
                raise ServerError(self._about(happened)) from None
        missing = no_answer(response, self._key)
        if missing is not None:
            raise ServerError(self._about(missing))
        # The client leaves out what the server left out.
        for seen, field in ((self._models, "model"), (self._fingerprints, "system_fingerprint")):
            if value := getattr(response, field, None):
                seen.add(str(value))
        choice = response.choices[0]
        return Completion(
            # Half of a surrogate pair, which JSON can hold and no file can.
            text=choice.message.content.encode("utf-8", errors="replace").decode("utf-8"),
            tokens=response.usage.completion_tokens,
            finished=choice.finish_reason == "stop",
        )

    def _about(self, what: str) -> str:
        return f"server '{self.url}' {what}; {AGAIN}"


def _has_a_port(parts: SplitResult) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def _client() -> Any:
    """Return the openai package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import openai
    except ImportError:
        raise ConfigError("a model server needs the openai client: pip install geomsafe[openai]") from None
    return openai


def _turns(turns: list[Message], opening: str) -> dict[str, Any]:
    if not opening:
        return {"messages": turns}
    return {
        "messages": [*turns, {"role": "assistant", "content": opening}],
        "extra_body": {"continue_final_message": True, "add_generation_prompt": False},
    }


def _hand_over(waiting: dict[Future[Completion], int], done: Done) -> None:
    """Call `done` for every answer as it comes; on an error or Ctrl-C, also for those that came meanwhile."""  # noqa: DOC501
    given: set[int] = set()

    def give(future: Future[Completion]) -> None:
        place = waiting[future]
        # Before the call: what was interrupted while it was written must not be written twice.
        given.add(place)
        done(place, future.result())

    try:
        for future in as_completed(waiting):
            completion_error = future.exception()
            if completion_error is not None:
                raise completion_error
            give(future)
    except (ServerError, KeyboardInterrupt):
        for future, place in waiting.items():
            if place not in given and future.done() and not future.cancelled() and future.exception() is None:
                give(future)
        raise
