"""The table of training steps: loss, learning rate and gradient norms."""

from __future__ import annotations

import math
from typing import Any

from geomsafe.reports.arms import Study

TRAINING = [
    "key", "run", "seed", "step", "loss", "lr", "tokens", "grad_norm", "grad_norm_methods", "grad_norm_clipped",
    "distance", "relative_distance",
]  # fmt: skip

# A curve in a browser shows no more points than this, and a page of many runs no more rows; the rest stays in
# steps.jsonl.
MOST_POINTS = 500
MOST_ROWS = 12_000


def training_rows(study: Study) -> list[dict[str, Any]]:
    """Return every n-th step of every run, at most 500 of each and some 12,000 in all, and its last."""
    rows = []
    most = min(MOST_POINTS, MOST_ROWS // len(study.runs))
    for name, run in study.runs.items():
        arm = study.arm_of(name)
        stride = math.ceil(len(run.steps) / most) or 1
        for index, step in enumerate(run.steps):
            if index % stride == 0 or index == len(run.steps) - 1:
                place = {"key": study.name(arm) if arm else None, "run": name, "seed": run.seed}
                rows.append(place | {key: step.get(key) for key in TRAINING if key not in place})
    return rows
