"""What `geomsafe geometry` prints: the first lines of the analysis of one capture, in text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from geomsafe.records import RunRecord, read_record
from geomsafe.reports.captures import CONTROLS
from geomsafe.reports.collect import collect
from geomsafe.reports.wording import number

ORDER = ("safety", "utility", *CONTROLS)


class Summary(NamedTuple):
    """Sentences, and a table with one row a set or null."""

    lines: list[str]
    rows: list[dict[str, str]]


def checkpoint_summary(folder: Path) -> Summary:
    """Summarise the capture of one checkpoint.

    Args:
        folder: what `geomsafe geometry` has written.

    Returns:
        The cosines of the whole model, with their intervals or why they are undefined; curvature where it was taken;
        what was not run; ranks of every set and null, medians over weight matrices.
    """
    record = read_record(folder)
    tables = {name: table["rows"] for name, table in collect([folder], folder / "report")["tables"].items()}
    lines = [_cosine(row) for row in tables["cosines"] if row["grouping"] == "whole"]
    lines += _curvature(record)
    lines += [f"not run: {what}: {why}" for what, why in record.not_run.items() if what != "training"]
    rows = [
        {
            "gradient of": row["set"],
            "matrices": str(row["matrices"]),
            "effective rank": number(row["effective_rank"]),
            "stable rank": number(row["stable_rank"]),
            "CER(1)": number(row["cer_1"]),
            "CER(5)": number(row["cer_5"]),
            "CER(20)": number(row["cer_20"]),
        }
        for row in sorted(tables["ranks"], key=lambda row: _place(row["set"]))
    ]
    return Summary(lines, rows)


def _place(kind: str) -> tuple[int, str]:
    return (ORDER.index(kind), "") if kind in ORDER else (len(ORDER), kind)


def _cosine(row: dict[str, Any]) -> str:
    what = f"cosine of {row['set']} and utility gradient, whole model"
    if row["cosine"] is None:
        return f"{what}: undefined, {row['reason']} (raw {number(row['raw'])})"
    interval = f"[{number(row['low'])}, {number(row['high'])}]"
    return f"{what}: {number(row['cosine'])} {interval} (raw {number(row['raw'])})"


def _curvature(record: RunRecord) -> list[str]:
    found: dict[str, dict[str, Any]] = record.data.get("curvature", {})
    return [
        f"safety loss {name.replace('_', ' the ')} descent, per unit length: slope {number(along['slope'])}, "
        f"curvature {number(along['curvature'])} nats"
        for name, along in found.items()
    ]
