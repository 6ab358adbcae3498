"""The tables of a sweep as Markdown, one a condition, for a document that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from geomsafe.reports.columns import COLUMNS
from geomsafe.reports.wording import number, percent, percent_interval, plural, points, points_interval, with_arrow

Row = Mapping[str, Any]

_AXES = {"l2": "L2", "kl": "KL", "utility_loss": "utility loss"}


def sweep_markdown(analysis: Mapping[str, Any]) -> str:
    """Write the arms of a sweep.

    Args:
        analysis: analysis.json of a sweep.

    Returns:
        Markdown: what was measured in the first line, then a table a condition.
    """
    return _document(analysis, "sweep", sweep_cells)


def matched_markdown(analysis: Mapping[str, Any]) -> str:
    """Write the matched comparisons of a sweep.

    Args:
        analysis: analysis.json of a sweep.

    Returns:
        Markdown: what was measured in the first line, then a table a condition.
    """
    return _document(analysis, "matched", _matched_cells)


def sweep_cells(row: Row) -> dict[str, str]:
    """Return one arm of a sweep in a few cells of text.

    Args:
        row: of the table `sweep`.

    Returns:
        Title -> text, every rate with its interval.
    """
    rates = ("gold_asr", "keyword_asr", "sham_loss", "over_refusal", "utility", "retained", "incoherence")
    return {
        "arm": str(row["arm"]),
        **{heading(key): rate_cell(row, key) for key in rates},
        heading("answer_incoherence"): answer_cell(row),
        "distance": number(row["relative_distance"]),
        "KL": number(row["kl_task"]),
        heading("difference", "minus control"): _difference(row, "difference", "difference", str(row["control"])),
        heading("radial_difference", "minus radial"): _difference(row, "radial_difference", "radial"),
        "verdict": row["word"] or "–",
    }


def heading(key: str, title: str = "") -> str:
    """Return a column's title with the direction that is better: "gold ASR ↓".

    Args:
        key: the column.
        title: another title than its own.
    """
    return with_arrow(title or COLUMNS[key].title, COLUMNS[key].better)


def rate_cell(row: Row, key: str) -> str:
    """Return a rate with its interval: "21.3 % [18.0, 25.1]"."""
    return f"{percent(row[key])} {percent_interval(row[f'{key}_low'], row[f'{key}_high'])}".strip()


def answer_cell(row: Row) -> str:
    """Return the share of incoherent answers with the number of answers, "no answers" where all were refused."""
    if row["answered"] == 0:
        return "no answers"
    return rate_cell(row, "answer_incoherence") + (f" of {row['answered']}" if row["answered"] else "")


def _matched_cells(row: Row) -> dict[str, str]:
    found = row["difference"] is not None
    apart = [("l2_apart", "L2"), ("kl_apart", "KL"), ("utility_loss_apart", "loss")]
    return {
        "arm": str(row["arm"]),
        "compared with": str(row["comparator"]),
        "matched on": _AXES[row["axis"]],
        "at": number(row["at"]),
        "ASR ↓": percent(row["rate"], "–"),
        "its ASR there ↓": percent(row["other_rate"], "–"),
        heading("difference", "difference"): _difference(row, "difference", "difference")
        if found
        else str(row["reason"]),
        "seeds": number(row["seeds"]),
        "apart": ", ".join(f"{name} {number(row[key])}" for key, name in apart if row[key] is not None) or "–",
        "matched on all": number(row["all_matched"]),
    }


def _document(analysis: Mapping[str, Any], name: str, cells: Callable[[Row], dict[str, str]]) -> str:
    sweep, rows = analysis["sweep"], analysis["tables"][name]["rows"]
    parts = [_first_line(analysis)]
    for condition in sweep["conditions"]:
        found = [cells(row) for row in rows if row["condition"] == condition]
        if found:
            heading = [f"### {condition}"] if condition else []
            parts += [*heading, _table(found)]
    return "\n\n".join(parts) + "\n"


def _first_line(analysis: Mapping[str, Any]) -> str:
    scope, strength = analysis["scope"], analysis["verdict"]["strength"]
    return (
        f"{scope['model']}; {plural(scope['prompts'], 'harmful prompt')} in {plural(scope['clusters'], 'cluster')}; "
        f"{plural(len(scope['seeds']), 'seed')}; {strength}."
    )


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    titles = list(rows[0])
    lines = [titles, ["---"] * len(titles), *([row[title] for title in titles] for row in rows)]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _difference(row: Row, key: str, stem: str, control: str = "") -> str:
    if row[key] is None:
        return "–"
    against = f" ({control})" if control else ""
    return f"{points(row[key])} {points_interval(row[f'{stem}_low'], row[f'{stem}_high'])}{against}"
