"""`check`: a user's own model, data and settings on a few rows, before the long job that they describe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from geomsafe.config import TrainConfig
from geomsafe.data import Encoded, EncodedSet, collate, encode_all, load_conversations
from geomsafe.errors import CheckError
from geomsafe.gradients import GradientGram, gradient_gram, target_shapes
from geomsafe.gradients.checking import (
    Finding,
    batch_gradients,
    check_curvature,
    check_determinism,
    check_engine,
    check_rows_apart,
    check_ties,
)
from geomsafe.models import Loaded, no_loading_bars
from geomsafe.training.costs import Cost, Measured, disk_costs, memory_costs, time_costs
from geomsafe.training.prepare import load_start, refuse_launchers

Progress = Callable[[str, int, int], None]

_SHOWN = 5


@dataclass(frozen=True)
class CheckReport:
    """What `geomsafe check` has found.

    Attributes:
        findings: one a check, in the order in which they were made.
        costs: memory, disk and time of the run that the settings describe.
        slow: weights that take the exact loop over examples, by name.
        notes: what was changed or is odd in model and data.
    """

    findings: list[Finding]
    costs: list[Cost]
    slow: tuple[str, ...]
    notes: list[str]

    def require_passed(self) -> None:
        """Stop where a check has failed.

        Raises:
            CheckError: naming each failed check and what was seen.
        """
        failed = [f"{finding.name}: {finding.detail}" for finding in self.findings if finding.status == "failed"]
        if failed:
            raise CheckError(f"{len(failed)} of {len(self.findings)} checks failed: {'; '.join(failed)}")


def check(config: TrainConfig, *, rows: int = 4, progress: Progress | None = None) -> CheckReport:
    """Check that a model's gradients can be measured exactly, and estimate what a run costs.

    Takes about 8 + rows^2 / 2 backward passes over single rows. Nothing is trained and nothing is written.

    Args:
        config: the settings of the run, as `geomsafe train` takes them.
        rows: how many rows of the data to check on, spread over it.
        progress: called with a label, passes done and passes in all.

    Returns:
        Findings and costs; whether all passed is said by `CheckReport.require_passed`.
    """
    refuse_launchers()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        with no_loading_bars():
            return _check(config, rows, progress or (lambda label, done, total: None))
    finally:
        torch.set_num_threads(threads)


def _check(config: TrainConfig, rows: int, progress: Progress) -> CheckReport:
    loaded = load_start(config)
    found = load_conversations(config.data, columns=config.columns, limit=config.data_limit, world=loaded.world)
    encoded = encode_all(found, loaded.tokenizer, config.max_length, config.system_prompt)
    batch = collate(_spread(encoded, rows), loaded.tokenizer.pad_token_id or 0)
    count = len(batch["input_ids"])
    steps = _Steps(progress, 9 + count * (count + 1) // 2)
    model = loaded.model

    findings = [check_ties(model)]
    steps.done("two passes", 0)
    findings.append(check_determinism(model, batch))
    steps.done("two passes", 2)
    findings.append(check_rows_apart(model, batch))
    steps.done("rows alone")
    gram = gradient_gram(model, batch, reduction="sum")
    steps.done("engine")
    measured = _measure(config, loaded, encoded)
    steps.done("timing", 2)
    findings.append(check_engine(model, batch, gram, lambda: steps.done("autograd, row by row")))
    findings.append(_slow_path(gram))
    findings.append(check_curvature(model, batch))
    steps.done("curvature", 2)
    costs, limits = [], []
    for cost, limit in (
        memory_costs(config, loaded, measured),
        disk_costs(config, loaded.model, list(target_shapes(model).values()), len(encoded)),
    ):
        costs += cost
        limits += limit
    costs += time_costs(config, encoded, measured)
    steps.done("costs")
    return CheckReport(findings + limits, costs, gram.slow, [*loaded.notes, *found.notes, *encoded.notes])


class _Steps:
    """Counts passes for a progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._count = progress, total, 0

    def done(self, label: str, passes: int = 1) -> None:
        """Report passes as done."""
        self._count = min(self._total, self._count + passes)
        self._progress(label, self._count, self._total)


def _spread(encoded: EncodedSet, rows: int) -> list[Encoded]:
    count = min(rows, len(encoded))
    return [encoded.rows[index * len(encoded) // count] for index in range(count)]


def _measure(config: TrainConfig, loaded: Loaded, encoded: EncodedSet) -> Measured:
    """Time a forward and backward pass of one training batch, and the engine's of the same rows.

    Returns:
        The measurement. Both ways have run before, so that loading of kernels is not in it.
    """
    pad = loaded.tokenizer.pad_token_id or 0
    batch = collate(_spread(encoded, config.batch_size), pad)
    start = _now(loaded)
    batch_gradients(loaded.model, batch)
    between = _now(loaded)
    gradient_gram(loaded.model, batch)
    end = _now(loaded)
    longest = collate([max(encoded.rows, key=lambda row: len(row.input_ids))], pad)
    return Measured(between - start, end - between, batch["input_ids"].numel(), longest)


def _now(loaded: Loaded) -> float:
    # A GPU returns before it has finished.
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    return time.perf_counter()


def _slow_path(gram: GradientGram) -> Finding:
    routes: dict[str, int] = {}
    for route in gram.routes.values():
        routes[route] = routes.get(route, 0) + 1
    said = ", ".join(f"{count} by {route}" for route, count in sorted(routes.items()))
    if not gram.slow:
        return Finding("slow path", "ok", f"no weight takes it ({said})")
    return Finding(
        "slow path",
        "warning",
        f"{len(gram.slow)} of {len(gram)} weights take the exact loop over examples, one pass each: "
        f"{_listed(gram.slow)} ({said})",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
