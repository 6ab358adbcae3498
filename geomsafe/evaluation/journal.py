"""Work in progress on disk: each answer or verdict is appended as it comes, so that none is made twice.

    evaluations/<weights>--<suite>.jsonl.partial

The first line is the identity of the work; a journal of another identity is begun anew. A torn last line,
the mark of a killed process, is dropped. One process writes it at a time. It is removed when the whole file is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from geomsafe.errors import RecordError
from geomsafe.records import write_atomic


class Journal:
    """Entries by index, those of an earlier attempt included.

    Attributes:
        entries: index -> what was made for it.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Read what an earlier attempt left.

        Args:
            path: the journal's file; it need not exist.
            identity: JSON values that decide every entry.

        Raises:
            RecordError: another process writes it.
        """
        self._path = path
        self.entries: dict[int, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise RecordError(
                f"'{path}' is being written by another process: wait for it, or name another --out"
            ) from None
        head = json.dumps(identity, sort_keys=True, ensure_ascii=False) + "\n"
        # Split at "\n" alone: an answer may hold other characters that end lines, such as U+2028.
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        whole = [line + "\n" for line in text.split("\n")[:-1]]
        kept = [head, *self._read(whole[1:])] if whole[:1] == [head] else [head]
        if "".join(kept) != text:
            write_atomic(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def _read(self, lines: list[str]) -> list[str]:
        """Take up entries as far as they are whole.

        Returns:
            Their lines.
        """
        kept: list[str] = []
        for line in lines:
            try:
                entry = json.loads(line)
                self.entries[entry.pop("index")] = entry
            except (ValueError, KeyError, AttributeError):
                break
            kept.append(line)
        return kept

    def add(self, index: int, entry: dict[str, Any]) -> None:
        """Append an entry and see that it reaches the file.

        Args:
            index: its number.
            entry: JSON values.
        """
        self._file.write(json.dumps({"index": index, **entry}, ensure_ascii=False) + "\n")
        self._file.flush()
        self.entries[index] = entry

    def remove(self) -> None:
        """Delete the file: what it held is elsewhere now."""
        self._close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._file.close()
        # Before the release: whoever opens the name from now on locks a file of its own, and we are done.
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
