"""The run directory: atomic files, torn lines, versions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from geomsafe import records
from geomsafe.errors import RecordError


def _record() -> records.RunRecord:
    return records.RunRecord(name="x", created="2026-01-01T00:00:00Z", config={"lr": 1e-4})


def test_record_round_trips(tmp_path: Path) -> None:
    records.write_record(tmp_path, _record())
    assert records.read_record(tmp_path) == _record()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not a run directory"),
        ("{", "not JSON"),
        ('{"schema_version": "geomsafe.run/99"}', "geomsafe.run/99"),
        ('{"schema_version": "geomsafe.run/1", "name": "x"}', "created"),
        ('{"schema_version": "geomsafe.run/2", "name": "x"}', "created"),
        ("[]", "schema None"),
    ],
)
def test_unreadable_record_says_why(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(RecordError, match=said):
        records.read_record(tmp_path)


def test_a_record_of_schema_1_reads_as_a_run_without_drift(tmp_path: Path) -> None:
    old = json.loads(_record().model_dump_json()) | {"schema_version": "geomsafe.run/1"}
    del old["drift"], old["measurements"]
    (tmp_path / "run.json").write_text(json.dumps(old), encoding="utf-8")
    assert records.read_record(tmp_path) == _record()
    records.write_record(tmp_path, records.read_record(tmp_path))
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["schema_version"] == records.SCHEMA


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    records.write_atomic(path, "old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        records.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


def test_truncate_cuts_later_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st', encoding="utf-8")
    records.truncate_steps(path, 2)
    assert [row["step"] for row in records.read_jsonl(path)] == [1, 2]


def test_torn_line_is_named_when_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step": 1}\n{"st', encoding="utf-8")
    with pytest.raises(RecordError, match="line 2"):
        list(records.read_jsonl(path))


def test_content_hash_sees_order_and_content() -> None:
    rows = [{"a": 1, "b": "ü"}, {"a": 2}]
    same = [json.loads(json.dumps({"b": "ü", "a": 1})), {"a": 2}]
    assert records.content_sha256(rows) == records.content_sha256(same)
    assert records.content_sha256(rows) != records.content_sha256(rows[::-1])
    assert records.content_sha256([["ab"], ["c"]]) != records.content_sha256([["a"], ["bc"]])
