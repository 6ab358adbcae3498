"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from geomsafe.records import Evaluation, Measurement, SweepPoint, SweepRecord
    from geomsafe.reports.paired import PairedScore
    from geomsafe.training.checking import CheckReport


# Where the output is no terminal, a log or a pipe, lines need not fit a screen.
LOG_WIDTH = 160


def print_table(rows: list[dict[str, str]]) -> None:
    """Print rows, one mapping of column to text each; columns are those of the first row."""
    if not rows:
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        # An interval goes below its number: ten columns then fit a terminal.
        table.add_row(*(cell.replace(" [", "\n[") for cell in row.values()))
    Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(table)


def score_rows(evaluations: Iterable[Evaluation], folder: Path) -> list[dict[str, str]]:
    """Return one row a weight set, prompt set and verdict: share, 95 % interval and what it rests on.

    Args:
        evaluations: what was scored.
        folder: where their files lie.
    """
    from geomsafe.analyses.rates import rate
    from geomsafe.reports.answers import read_answers

    rows = []
    for evaluation in evaluations:
        answers = read_answers(folder / evaluation.file)
        for judge, counts in evaluation.scores.items():
            # A judge may have no verdict on a prompt: the oracle, where its world does not know it.
            said = [
                (verdict, cluster)
                for verdict, cluster in zip(answers.verdicts[judge], answers.clusters, strict=True)
                if verdict
            ]
            for verdict in counts if said else ():
                found = rate([one == verdict for one, _ in said], [cluster for _, cluster in said])
                rows.append({
                    "weights": evaluation.weights,
                    "prompts": f"{evaluation.suite} ({evaluation.kind})",
                    "judge": judge,
                    "verdict": verdict,
                    "share": f"{found.rate:.3f}",
                    "95 % interval": f"[{found.low:.3f}, {found.high:.3f}]",
                    "n": str(found.n),
                    "clusters": str(found.clusters),
                })
    return rows


def measurement_rows(measurements: Iterable[Measurement]) -> list[dict[str, str]]:
    """Return one row a weight set, measure and metric: which way is better, value, standard error and n."""
    from geomsafe.reports.wording import number

    arrows = {True: " ↑", False: " ↓"}
    rows = []
    for one in measurements:
        for metric, value in one.values.items():
            error = one.errors.get(metric)
            up = one.higher_is_better.get(metric)
            rows.append({
                "weights": one.weights,
                "measure": one.name,
                "metric": metric + ("" if up is None else arrows[up]),
                "value": number(value) + ("" if error is None else f" ± {number(error)}"),
                "n": str(one.n.get(metric, "-")),
            })
    return rows


def paired_rows(scores: Iterable[PairedScore], first: str, second: str) -> list[dict[str, str]]:
    """Return one row a prompt set, judge and verdict: both shares, their difference and what could be seen of it."""
    return [
        {
            "prompts": f"{one.suite} ({one.kind})",
            "judge": one.judge,
            "verdict": one.verdict,
            first: f"{one.first:.3f}",
            second: f"{one.second:.3f}",
            "difference": f"{one.difference.difference:+.3f} [{one.difference.low:+.3f}, {one.difference.high:+.3f}]",
            "p": f"{one.difference.p_value:.3f}",
            "detectable": "-" if one.difference.detectable is None else f"{one.difference.detectable:.3f}",
            "n": str(one.difference.n),
            "clusters": str(one.difference.clusters),
        }
        for one in scores
    ]


def check_rows(report: CheckReport) -> list[dict[str, str]]:
    """Return one row a check: what was checked, how it went, what was seen."""
    return [{"check": item.name, "result": item.status, "seen": item.detail} for item in report.findings]


def cost_rows(report: CheckReport) -> list[dict[str, str]]:
    """Return one row an estimate."""
    return [
        {
            "estimate": cost.name,
            "amount": f"{cost.amount:,.2f} {cost.unit}" if cost.amount >= 1 else f"{cost.amount:.2g} {cost.unit}",
            "from": cost.detail,
        }
        for cost in report.costs
    ]


def plan_rows(record: SweepRecord) -> list[dict[str, str]]:
    """Return one row an arm and condition of a sweep: its settings, weights and runs."""
    groups: dict[tuple[str, str], list[SweepPoint]] = {}
    for point in record.points:
        groups.setdefault((point.condition, point.arm), []).append(point)
    return [
        {
            "condition": condition or "-",
            "arm": arm,
            "weights": points[0].weights,
            "settings": " ".join(f"{key}={value}" for key, value in points[0].settings.items()) or "-",
            "seeds": " ".join(str(point.seed) for point in points),
            "runs": " ".join(point.run.rpartition("/")[2][:8] for point in points),
            "control": ", ".join(record.controls.get(arm, [])) or "-",
        }
        for (condition, arm), points in groups.items()
    ]
