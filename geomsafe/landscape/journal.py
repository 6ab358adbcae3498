"""Points on disk as they come, so that none is scored twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from geomsafe.errors import RecordError
from geomsafe.landscape.grids import Where
from geomsafe.landscape.scene import Done
from geomsafe.landscape_record import ANSWERS, POINTS, Point
from geomsafe.records import JsonLines, write_jsonl


class PointJournal:
    """points.jsonl and answers.jsonl of one landscape; one process writes them at a time.

    Attributes:
        points: what is there.
    """

    def __init__(self, folder: Path) -> None:
        """Read what an earlier attempt left; torn lines, and answers without their point, are cut.

        Args:
            folder: of the landscape.

        Raises:
            RecordError: another process writes it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise RecordError(f"'{folder}' is being written by another process: wait, or name another --out") from None
        rows = _whole(folder / POINTS)
        self.points: dict[Where, Point] = {}
        for row in rows:
            point = Point.model_validate(row)
            self.points[Where(point.line, tuple(point.at))] = point
        kept = [row for row in _whole(folder / ANSWERS) if Where(row["line"], tuple(row["at"])) in self.points]
        for name, lines in ((POINTS, rows), (ANSWERS, kept)):
            if (folder / name).is_file():
                write_jsonl(folder / name, lines)
        self._points, self._folder = JsonLines(folder / POINTS), folder
        self._answers: JsonLines | None = None

    def add(self, done: Done) -> None:
        """Append a point, its answers first: a point that is there has its answers.

        Args:
            done: the point.
        """
        point = done.point
        if done.answers:
            if self._answers is None:
                self._answers = JsonLines(self._folder / ANSWERS)
            self._answers.append({"line": point.line, "at": point.at, "answers": done.answers})
        self._points.append(point.model_dump(mode="json"))
        self.points[Where(point.line, tuple(point.at))] = point

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._points.close()
        if self._answers is not None:
            self._answers.close()
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


def _whole(path: Path) -> list[dict[str, Any]]:
    """Return the rows before the first torn line."""
    text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
    found = []
    for line in text.split("\n")[:-1]:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
