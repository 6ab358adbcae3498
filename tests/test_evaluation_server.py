"""Answers from a model server: handed over as they come, kept when it fails, every failure explained."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from chat_server import MODEL, Reply, last_turn, script, serving

from geomsafe.errors import ConfigError, ServerError
from geomsafe.evaluation.decoding import Completion
from geomsafe.evaluation.server import ChatServer

KEY = "sk-secret-0123"


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key and no proxy of the machine's, and pauses between retries that do not hold up the tests."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


def _user(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def _answers(server: ChatServer, texts: Sequence[str], **settings: Any) -> dict[int, Completion]:
    found: dict[int, Completion] = {}
    server.answer(_user(*texts), max_new_tokens=16, done=found.__setitem__, **settings)
    return found


def _failure(reply: Reply, **settings: Any) -> str:
    with serving(lambda request: reply) as running, pytest.raises(ServerError) as caught:
        _answers(ChatServer(running.url, MODEL, max_retries=1, api_key=KEY, **settings), ["Hi"])
    message = str(caught.value)
    assert message.startswith(f"server '{running.url}' ")
    assert message.endswith("; run the same command again: what is done is kept")
    assert KEY[:9] not in message and "\n" not in message
    return message


def test_every_conversation_is_answered_once_at_its_place() -> None:
    texts = [f"question {number}" for number in range(20)]
    with serving(lambda request: f"re: {last_turn(request)}") as running:
        found = _answers(ChatServer(running.url, MODEL, concurrency=4), texts)
    assert found == {place: Completion(f"re: {text}", 3, True) for place, text in enumerate(texts)}
    assert len(running.requests) == 20 and running.most <= 4


def test_what_is_sent() -> None:
    with serving(lambda request: "Yes.") as running:
        server = ChatServer(running.url, MODEL, api_key=KEY, concurrency=1)
        _answers(server, ["a", "b"], temperature=[0.0, 0.7], top_p=0.9, seed=3)
    expected = {"model": MODEL, "max_tokens": 16, "top_p": 0.9, "seed": 3}
    assert running.requests == [
        expected | {"messages": [{"role": "user", "content": text}], "temperature": heat}
        for text, heat in (("a", 0.0), ("b", 0.7))
    ]
    assert running.keys == [f"Bearer {KEY}"] * 2


def test_an_opening_is_continued() -> None:
    """Only where there is one: the other request stays an ordinary one."""
    with serving(lambda request: " here it is") as running:
        found = _answers(ChatServer(running.url, MODEL, concurrency=1), ["a", "b"], opening=["Sure,", ""])
    with_opening, without = running.requests
    assert with_opening["messages"][-1] == {"role": "assistant", "content": "Sure,"}
    assert with_opening["continue_final_message"] is True and with_opening["add_generation_prompt"] is False
    assert "continue_final_message" not in without and len(without["messages"]) == 1
    assert found[0].text == " here it is"


def test_a_server_that_continues_nothing_is_named() -> None:
    reply = Reply("Unrecognized request argument: continue_final_message", status=400)
    with serving(lambda request: reply) as running, pytest.raises(ServerError, match="does not continue an answer"):
        _answers(ChatServer(running.url, MODEL), ["a"], opening=["Sure,"])


def test_the_length_limit_is_not_an_end() -> None:
    with serving(lambda request: Reply("one two", finish="length")) as running:
        assert _answers(ChatServer(running.url, MODEL), ["a"])[0] == Completion("one two", 2, False)


@pytest.mark.parametrize(
    "first", [Reply("busy", status=500), Reply("slow down", status=429, headers={"Retry-After-Ms": "5"})]
)
def test_passing_failures_are_retried(first: Reply) -> None:
    with serving(script(first, first, "Now.")) as running:
        found = _answers(ChatServer(running.url, MODEL, max_retries=2), ["a"])
    assert found[0].text == "Now." and len(running.requests) == 3


def test_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("openai._base_client.anyio.sleep", sleep)
    with serving(script(Reply("slow down", status=429, headers={"Retry-After": "7"}), "Now.")) as running:
        _answers(ChatServer(running.url, MODEL, max_retries=1), ["a"])
    assert waited == [7.0]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            Reply("slow down", status=429),
            "asks for fewer requests (429 after retries: slow down): lower the concurrency",
        ),
        (Reply("oh no", status=500), "fails (500 after retries: oh no)"),
        (
            Reply(f"Incorrect API key provided: {KEY}", status=401),
            "refuses the key (401: Incorrect API key provided: ***)",
        ),
        (Reply("x" * 195 + KEY, status=401), "x***"),
        (Reply("no such model", status=404), f"has no model '{MODEL}' under this address (404: no such model)"),
        (Reply("max_tokens is too large", status=400), "refuses the request (400: max_tokens is too large)"),
        (Reply("teapot", status=418), "refuses the request (418: teapot)"),
        (Reply(raw=b"<html>Welcome</html>", kind="text/html"), "sent text instead of JSON ('<html>Welcome</html>')"),
        (Reply(raw=b"<html>Not here</html>", kind="text/html", status=404), "404: <html>Not here</html>"),
        (Reply(raw=b"{not json"), "sent what is no JSON"),
        (Reply(raw=b'["a list"]'), "sent an answer without choices"),
        (Reply(change={"choices": []}), "sent an answer without choices"),
        (Reply(change={"choices": "many"}), "sent an answer without choices"),
        (Reply(text=None, finish="length"), "sent an answer without text (finish_reason 'length')"),
        (Reply(change={"usage": None}), "sent an answer without usage.completion_tokens"),
        (Reply(broken=True), "broke off in the middle of an answer"),
    ],
)
def test_every_failure_is_one_line_with_its_remedy(reply: Reply, words: str) -> None:
    assert words in _failure(reply)


def test_a_time_out_says_so() -> None:
    assert "did not answer in time" in _failure(Reply(delay=0.5), timeout=0.1)


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=f"'http://127.0.0.1:{port}/v1' refuses the connection: start it"):
        _answers(ChatServer(f"http://127.0.0.1:{port}/v1", MODEL, max_retries=0), ["a"])
    with pytest.raises(ServerError, match="cannot be reached"):
        _answers(ChatServer("http://nowhere.invalid/v1", MODEL, max_retries=0), ["a"])


def test_answers_that_came_before_a_failure_are_kept() -> None:
    """And the rest alone is asked for again."""

    def dies(request: dict[str, Any]) -> Reply | str:
        return Reply(broken=True) if last_turn(request) == "3" else last_turn(request)

    texts = [str(number) for number in range(6)]
    found: dict[int, Completion] = {}
    with serving(dies) as running, pytest.raises(ServerError):
        ChatServer(running.url, MODEL, max_retries=0, concurrency=1).answer(
            _user(*texts), max_new_tokens=4, done=found.__setitem__
        )
    assert {0, 1, 2} <= set(found) and 3 not in found
    left = [place for place in range(6) if place not in found]
    with serving(lambda request: last_turn(request)) as running:
        again = _answers(ChatServer(running.url, MODEL), [texts[place] for place in left])
    found |= {left[place]: completion for place, completion in again.items()}
    assert [found[place].text for place in range(6)] == texts
    assert len(running.requests) == len(left)


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """A process that a shell starts in the background is born deaf to SIGINT, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.usefixtures("heeded_interrupts")
def test_an_interrupt_keeps_what_came_and_does_not_wait() -> None:
    """One answer is there, one request hangs, the rest waits: Ctrl-C comes back with the one while it still hangs."""
    came_back = threading.Event()

    def hangs(request: dict[str, Any]) -> Reply | str:
        if last_turn(request) == "hang":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            came_back.wait(60)
        return "there"

    found: dict[int, Completion] = {}
    with serving(hangs) as running:
        with pytest.raises(KeyboardInterrupt):
            ChatServer(running.url, MODEL, concurrency=1).answer(
                _user("first", "hang", "never", "never"), max_new_tokens=4, done=found.__setitem__
            )
        came_back.set()
    assert found == {0: Completion("there", 1, True)}
    assert [last_turn(request) for request in running.requests] == ["first", "hang"]


def test_a_failing_callback_stops_everything() -> None:
    calls: list[int] = []

    def full(place: int, completion: Completion) -> None:
        calls.append(place)
        raise OSError("no space left")

    with serving(lambda request: "a") as running, pytest.raises(OSError, match="no space left"):
        ChatServer(running.url, MODEL, concurrency=1).answer(_user("a", "b", "c"), max_new_tokens=4, done=full)
    assert len(calls) == 1


def test_settings_hold_no_secret_and_only_observed_changes() -> None:
    with serving(lambda request: Reply(change={"model": "tiny-chat-2026", "system_fingerprint": "fp_1"})) as running:
        with_secrets = running.url.replace("127", f"user:{KEY}@127") + f"?key={KEY}"
        server = ChatServer(with_secrets, MODEL, api_key=KEY)
        assert server.url == running.url
        plain = ChatServer(running.url, MODEL, api_key=KEY)
        before = plain.settings(max_new_tokens=16, seed=1)
        _answers(plain, ["a"])
        after = plain.settings(max_new_tokens=16, seed=1)
    assert KEY not in json.dumps([server.settings(), before, after]) + repr(server)
    assert before.pop("observed") == {"model": [], "system_fingerprint": []}
    assert after.pop("observed") == {"model": ["tiny-chat-2026"], "system_fingerprint": ["fp_1"]}
    assert before == after
    assert before["engine"] == "openai" and before["max_new_tokens"] == 16 and before["temperature"] == 0.0
    assert before["base_url"] == running.url and before["client"].startswith("openai ")


def test_the_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda request: "a") as running:
        _answers(ChatServer(running.url, MODEL), ["a"])
    assert running.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("localhost:8000", {}, "is no http address"),
        ("http://localhost:80a/v1", {}, "is no http address"),
        ("http://", {}, "is no http address"),
        ("http://a/v1", {"timeout": 0}, "must be positive"),
        ("http://a/v1", {"concurrency": 0}, "must be positive"),
        ("http://a/v1", {"max_retries": -1}, "not negative"),
    ],
)
def test_settings_out_of_range_are_refused(url: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ChatServer(url, MODEL, **settings)


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install geomsafe\[openai\]"):
        _answers(ChatServer("http://localhost:1/v1", MODEL), ["a"])


def test_it_works_inside_a_running_event_loop() -> None:
    """As in a notebook."""
    import asyncio

    async def cell(url: str) -> dict[int, Completion]:
        return _answers(ChatServer(url, MODEL), ["a"])

    with serving(lambda request: "b") as running:
        assert asyncio.run(cell(running.url))[0].text == "b"
