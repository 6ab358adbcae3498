"""What went wrong between us and a model server, in one clause with the remedy.

The clauses follow "server '<address>' ". What the server itself says is quoted, shortened and without our key: some
servers quote the key that they refuse.
"""

from __future__ import annotations

import re
from typing import Any

_SECRET_IN_ADDRESS = re.compile(r"([?&][^=&\s]+=)[^&\s'\"]+")


def what_happened(error: Exception, model: str, secret: str | None, *, continued: bool) -> str:
    """Explain an error that the openai client raised after its retries.

    Args:
        error: what it raised.
        model: the model that was asked for.
        secret: the key, which is left out.
        continued: whether the answer was to continue an opening.

    Returns:
        A clause.
    """
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "did not answer in time, retries included: wait until it is less busy or give it a longer timeout"
    if isinstance(error, openai.APIConnectionError):
        return _connection(error)
    if isinstance(error, openai.APIStatusError):
        return _status(error.status_code, _quoted(_said(error), secret), model, continued)
    return f"sent what is no JSON ({_quoted(str(error), secret)}): check that its address ends in /v1"


def no_answer(response: Any, secret: str | None) -> str | None:
    """Explain a response that holds no answer, None for one that does.

    The client builds its objects without checking them, so anything can be missing.

    Args:
        response: what the client returned.
        secret: the key, which is left out.

    Returns:
        A clause, or None.
    """
    if isinstance(response, str):
        return f"sent text instead of JSON ('{_quoted(response, secret)}'): check that its address ends in /v1"
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list) or not choices:
        return "sent an answer without choices: see its log"
    message = getattr(choices[0], "message", None)
    if not isinstance(getattr(message, "content", None), str):
        reason = getattr(choices[0], "finish_reason", None)
        return (
            f"sent an answer without text (finish_reason '{reason}'): "
            "switch reasoning off on the server or raise the length limit"
        )
    usage = getattr(response, "usage", None)
    if not isinstance(getattr(usage, "completion_tokens", None), int):
        return "sent an answer without usage.completion_tokens: geomsafe records the length of every answer"
    return None


def _connection(error: Exception) -> str:
    links = [error]
    while isinstance(cause := links[-1].__cause__ or links[-1].__context__, Exception):
        links.append(cause)
    why = _quoted(str(links[-1]), None) or type(links[-1]).__name__
    if any(isinstance(link, ConnectionRefusedError) for link in links):
        return "refuses the connection: start it and check the port"
    # By name: which HTTP package the client uses changes with its version.
    if any(type(link).__name__ in {"RemoteProtocolError", "ReadError"} for link in links):
        return f"broke off in the middle of an answer ({why}): start it anew and see its log"
    return f"cannot be reached ({why}): start it and check the address"


def _status(status: int, said: str, model: str, continued: bool) -> str:
    if status == 400 and continued:
        return (
            f"does not continue an answer that has begun (400: {said}): serve the model with vLLM, or leave out the "
            "attacks that begin the answer"
        )
    if status >= 500:
        return f"fails ({status} after retries: {said}): see its log"
    what, remedy = {
        401: ("refuses the key", "set OPENAI_API_KEY to one that it knows"),
        403: ("refuses the key for this model", "use a key that may ask it"),
        404: (f"has no model '{model}' under this address", "see its /v1/models"),
        429: ("asks for fewer requests", "lower the concurrency or wait"),
    }.get(status, ("refuses the request", "mend what it names"))
    return f"{what} ({status}{' after retries' if status == 429 else ''}: {said}): {remedy}"


def _said(error: Any) -> str:
    """Return the server's own words, wherever it put them."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        words = inner.get("message") if isinstance(inner, dict) else inner
        if isinstance(words, str):
            return words
    return str(error.response.text)


def _quoted(text: str, secret: str | None, limit: int = 200) -> str:
    hidden = text.replace(secret, "***") if secret else text
    # Some servers quote the whole address, with what stands behind "?".
    hidden = _SECRET_IN_ADDRESS.sub(r"\1***", hidden)
    line = " ".join(hidden.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
