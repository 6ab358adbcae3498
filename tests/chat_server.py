"""A server on loopback that speaks /v1/models and /v1/chat/completions, and misbehaves as it is told.

`serving(reply)` runs it: `reply(request)` gets each request's body and returns a `Reply`; text alone is a
plain answer. `script(...)` gives one reply after another and repeats the last.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny-chat"


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        text: content of the answer; None for null.
        status: HTTP status; other than 200, `text` is the error's message.
        delay: seconds before anything is sent.
        headers: more headers, such as Retry-After.
        raw: the body as it is, instead of JSON.
        kind: Content-Type.
        broken: send half of the body, then reset the connection.
        change: fields of the body to replace.
        finish: finish_reason.
    """

    text: str | None = "Hello."
    status: int = 200
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    kind: str = "application/json"
    broken: bool = False
    change: dict[str, Any] = field(default_factory=dict)
    finish: str = "stop"


Replier = Callable[[dict[str, Any]], Reply | str]


@dataclass
class Serving:
    """A running server: its address and what it was asked.

    Attributes:
        url: base address for a client.
        requests: bodies of all chat requests, in the order in which they came.
        keys: Authorization header of each.
        most: largest number of requests under way at a time.
    """

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0


def script(*replies: Reply | str) -> Replier:
    """Return a replier that gives the replies in turn, then the last one for ever."""
    left = list(replies)
    lock = threading.Lock()

    def reply(request: dict[str, Any]) -> Reply | str:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return reply


def last_turn(request: dict[str, Any]) -> str:
    """Return the text of the last turn of a request."""
    return str(request["messages"][-1]["content"])


@contextmanager
def serving(reply: Replier) -> Iterator[Serving]:
    """Run a server for the body."""
    lock = threading.Lock()
    under_way = 0

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._send(Reply(raw=json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()))

        def do_POST(self) -> None:
            nonlocal under_way
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                under_way += 1
                state.most = max(state.most, under_way)
                state.requests.append(request)
                state.keys.append(self.headers["Authorization"])
            try:
                found = reply(request)
                answer = found if isinstance(found, Reply) else Reply(found)
                time.sleep(answer.delay)
                self._send(answer)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client went away, as some tests want
            finally:
                with lock:
                    under_way -= 1

        def _send(self, answer: Reply) -> None:
            body = answer.raw if answer.raw is not None else json.dumps(_body(answer)).encode()
            self.send_response(answer.status)
            for name, value in {
                "Content-Type": answer.kind,
                "Content-Length": str(len(body)),
                **answer.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer.broken else body)
            if answer.broken:
                self.wfile.flush()
                # Linger of 0 s: closing resets the connection.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = Serving(url=f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _body(answer: Reply) -> dict[str, Any]:
    if answer.status != 200:
        return {"error": {"message": answer.text, "type": "error", "code": answer.status}}
    words = (answer.text or "").split()
    choice = {"index": 0, "finish_reason": answer.finish, "message": {"role": "assistant", "content": answer.text}}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)},
        **answer.change,
    }
