"""Work in progress survives what kills a process, and belongs to one process and one identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from geomsafe.errors import RecordError
from geomsafe.evaluation.journal import Journal

IDENTITY = {"model": "a", "system_prompt": "Zeile\u2028zwei"}


def filled(path: Path) -> None:
    with Journal(path, IDENTITY) as journal:
        for index, text in enumerate(["one", "t\u2028wo\u0085", "three\x00\x1b[31m"]):
            journal.add(index, {"text": text})


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    filled(path)
    before = path.read_bytes()
    with Journal(path, IDENTITY) as journal:
        assert [journal.entries[index]["text"] for index in range(3)] == ["one", "t\u2028wo\u0085", "three\x00\x1b[31m"]
        assert path.read_bytes() == before, "what is whole is not written again"
    assert [file.name for file in tmp_path.iterdir()] == ["x.partial"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_tail_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.partial"
    filled(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, IDENTITY) as journal:
        assert sorted(journal.entries) == [0, 1]
        journal.add(2, {"text": "again"})
    with Journal(path, IDENTITY) as journal:
        assert journal.entries[2] == {"text": "again"}


def test_what_stands_behind_a_damaged_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    filled(path)
    head, first, _, third = path.read_text(encoding="utf-8").split("\n")[:4]
    path.write_text("\n".join([head, first, "{broken", third]) + "\n", encoding="utf-8")
    with Journal(path, IDENTITY) as journal:
        assert sorted(journal.entries) == [0]


def test_another_identity_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    filled(path)
    with Journal(path, IDENTITY | {"model": "b"}) as journal:
        assert journal.entries == {}


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    """Else the answers of one would stand under the identity of the other."""
    path = tmp_path / "x.partial"
    with Journal(path, IDENTITY), pytest.raises(RecordError, match="is being written by another process"):
        Journal(path, IDENTITY | {"model": "b"})
    filled(path)


def test_removed_it_leaves_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "x.partial", IDENTITY) as journal:
        journal.add(0, {"text": "one"})
        journal.remove()
    assert not list(tmp_path.iterdir())
