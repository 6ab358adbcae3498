"""Work in progress on disk: each answer or verdict is appended as it comes, so that none is made twice.

    evaluations/<weights>--<suite>.partial.jsonl

The first line is the identity of the work; a journal of another identity is begun anew. A torn last line,
the mark of a killed process, is dropped. The journal is removed when the whole file is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self


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
        """
        self._path = path
        self._head = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        self.entries: dict[int, dict[str, Any]] = {}
        # Split at "\n" alone: an answer may hold other characters that end lines, such as U+2028.
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        whole = [line + "\n" for line in text.split("\n")[:-1]]
        if not whole or whole[0].rstrip("\n") != self._head:
            whole = [self._head + "\n"]
        for line in whole[1:]:
            entry = json.loads(line)
            self.entries[entry.pop("index")] = entry
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(whole), encoding="utf-8", newline="\n")
        self._file = path.open("a", encoding="utf-8")

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
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
