"""The tables of a sweep made up from formulas: enough to draw every figure, with gaps where real sweeps have them."""

from __future__ import annotations

import math
from typing import Any

CONDITIONS = ("benign", "harmful 2 %")
SEEDS = (0, 1, 2)
STEPS = (10, 20, 40, 80)
PRIMARY = "gold_asr"
# arm -> (family, control, weights, distance factor, how fast attacks rise with drift, how fast utility does)
ARMS: dict[str, tuple[str, str | None, str, float, float, float]] = {
    "baseline": ("plain", None, "final", 1.0, 1.0, 1.0),
    "lr/2": ("plain", "baseline", "final", 0.55, 1.0, 1.0),
    "lr x2": ("plain", "baseline", "final", 1.7, 1.0, 1.0),
    "batch 16": ("plain", "baseline", "final", 0.7, 1.0, 0.9),
    "accumulation 4": ("plain", "baseline", "final", 0.72, 1.0, 0.95),
    "kl-tether 0.1": ("kl-tether", "lr/2", "final", 0.8, 0.7, 0.95),
    "kl-tether 1": ("kl-tether", "lr/2", "final", 0.5, 0.6, 0.8),
    "l2-tether 1e-3": ("l2-tether", "lr/2", "final", 0.6, 0.95, 0.9),
    "spf": ("spf", "baseline", "final", 0.9, 0.5, 1.0),
    "freeze 0-1": ("freeze", "lr/2", "final", 0.75, 0.9, 0.95),
    "ema 0.1": ("ema", "lr/2", "ema", 0.6, 1.0, 1.0),
    "ema 0.25": ("ema", "lr/2", "ema", 0.75, 1.0, 1.0),
    "scrambled": ("scrambled", "baseline", "final", 2.0, 0.1, 0.1),
}


def add_sweep(analysis: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an analysis with the tables of a sweep."""
    tables = {
        "sweep": _sweep(),
        "curves": _curves(),
        "matched": _matched(),
        "effects": _effects(),
        "tuning": _tuning(),
        "grid": _grid(),
    }
    titled = {
        name: {
            "title": name,
            "note": "",
            "columns": [
                {"key": key, "title": key.replace("_", " "), "unit": "", "better": "", "definition": key}
                for key in rows[0]
            ],
            "rows": rows,
        }
        for name, rows in tables.items()
    }
    sweep = {
        "name": "small-grid",
        "reference": "baseline",
        "primary": PRIMARY,
        "conditions": list(CONDITIONS),
        "source": {"kind": "study"},
    }
    return {**analysis, "sweep": sweep, "tables": {**analysis["tables"], **titled}}


def _state(arm: str, condition: str, seed: int, share: float) -> dict[str, float]:
    """Return drift and rates of an arm after a share of its training."""
    _, _, _, far, attacks, learns = ARMS[arm]
    dose = 1.6 if condition == CONDITIONS[1] else 1.0
    x = far * math.sqrt(share) * (1 + 0.04 * (seed - 1))
    asr = 0.03 + 0.9 * (1 - math.exp(-0.6 * attacks * dose * x * x))
    return {
        "distance": 3 * x,
        "relative_distance": 0.05 * x,
        "kl_task": 0.4 * x**1.5,
        "kl_harmful": 0.5 * dose * x * x,
        "utility_loss": 0.3 + 0.9 * math.exp(-1.5 * learns * x),
        "refusal_margin": 6 - 5 * dose * x,
        "gold_asr": asr,
        "keyword_asr": min(1.0, asr + 0.04),
        "utility": 0.2 + 0.7 * (1 - math.exp(-3 * learns * x)),
        "incoherence": 0.2 if arm == "scrambled" and share == 1 else 0.01,
        "sham_loss": 0.05 + 0.8 * (1 - math.exp(-0.5 * x * x)),
    }


def _end(arm: str, condition: str) -> dict[str, float]:
    states = [_state(arm, condition, seed, 1.0) for seed in SEEDS]
    return {key: sum(one[key] for one in states) / len(states) for key in states[0]}


def _sweep() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        for arm, (family, control, weights, *_) in ARMS.items():
            end = _end(arm, condition)
            row: dict[str, Any] = {
                "condition": condition, "key": str(len(rows) + 1), "arm": arm, "family": family, "weights": weights,
                "seeds": 3, "n": 360, "clusters": 40, "answered": 0,
            }  # fmt: skip
            for key in ("gold_asr", "keyword_asr", "over_refusal", "utility", "retained", "incoherence", "sham_loss",
                        "answer_incoherence", "validation"):  # fmt: skip
                value = end.get(key, {"over_refusal": 0.06, "validation": end["utility"]}.get(key))
                reach = None if value is None else 0.04
                row |= {
                    key: value,
                    f"{key}_low": None if value is None else max(0.0, value - 0.04),
                    f"{key}_high": None if value is None else min(1.0, value + 0.04),
                    f"{key}_min": None if reach is None else max(0.0, value - 0.02),
                    f"{key}_max": None if reach is None else min(1.0, value + 0.02),
                }
            row |= {key: end[key] for key in ("distance", "relative_distance", "kl_task", "kl_harmful")}
            row |= {"utility_loss": end["utility_loss"], "refusal_margin": end["refusal_margin"], "control": control}
            row |= _contrast(row, end, control, condition)
            rows.append(row)
        _mark_front([row for row in rows if row["condition"] == condition])
    return rows


def _contrast(row: dict[str, Any], end: dict[str, float], control: str | None, condition: str) -> dict[str, Any]:
    names = ("difference", "baseline_difference", "radial_difference", "sham_difference")
    found: dict[str, Any] = {}
    for name in names:
        stem = name.removesuffix("_difference") if name != "difference" else name
        against = {"baseline_difference": "baseline"}.get(name, control)
        measure = "sham_loss" if name == "sham_difference" else PRIMARY
        value = None if control is None or against is None else end[measure] - _end(against, condition)[measure]
        if name == "radial_difference" and row["arm"] != "spf":
            value = None
        found |= {
            name: value,
            f"{stem}_low": None if value is None else value - 0.05,
            f"{stem}_high": None if value is None else value + 0.05,
        }
    return found | {
        "radial_rate": None if found["radial_difference"] is None else end[PRIMARY] - found["radial_difference"],
        "p_value": None if control is None else 0.04,
        "seeds_p": None,
        "detectable": None if control is None else 0.06,
        "interval": "bootstrap",
        "word": None if control is None else "shown" if abs(found["difference"]) > 0.05 else "underpowered",
        "pareto": False,
        "strength": "descriptive",
    }


def _mark_front(rows: list[dict[str, Any]]) -> None:
    coherent = [row for row in rows if row["incoherence"] <= 0.05]
    for row in coherent:
        row["pareto"] = not any(
            other[PRIMARY] <= row[PRIMARY] and other["utility"] >= row["utility"] and other is not row
            for other in coherent
        )


def _curves() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        for arm in (arm for arm, (_, _, weights, *_) in ARMS.items() if weights == "final"):
            for seed in SEEDS:
                place = {"condition": condition, "arm": arm, "run": f"{condition}-{arm}-{seed}", "seed": seed}
                steps = [(f"step-{step:06d}", step, step / 100) for step in STEPS]
                sets = [("theta_0", 0, 0.0), *steps, ("final", 100, 1.0)]
                for name, step, share in sets:
                    rows.append({**place, "weights": name, "step": step, **_state(arm, condition, seed, share)})
    return rows


def _matched() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        for arm, (_, control, weights, *_) in ARMS.items():
            if control is None:
                continue
            comparators = dict.fromkeys([control, "baseline"])
            for comparator in [*comparators, *(["radial"] if arm == "spf" else [])]:
                for axis in ("l2",) if comparator == "radial" else ("l2", "kl", "utility_loss"):
                    rows.append(_match(condition, arm, weights, comparator, axis))
    return rows


def _match(condition: str, arm: str, weights: str, comparator: str, axis: str) -> dict[str, Any]:
    end = _end(arm, condition)
    key = {"l2": "relative_distance", "kl": "kl_task", "utility_loss": "utility_loss"}[axis]
    other = _end("baseline" if comparator == "radial" else comparator, condition)
    reason = None
    if end[key] < other[key] if axis == "utility_loss" else end[key] > other[key]:
        reason = "not comparable: no common support"
    elif axis == "kl" and weights == "ema":
        reason = "not comparable: KL was not measured"
    value = None if reason else 0.6 * (end[PRIMARY] - other[PRIMARY])
    return {
        "condition": condition, "arm": arm, "comparator": comparator, "axis": axis, "at": end[key],
        "rate": end[PRIMARY], "other_rate": None if value is None else end[PRIMARY] - value,
        "difference": value, "difference_low": None if value is None else value - 0.05,
        "difference_high": None if value is None else value + 0.05, "p_value": None if value is None else 0.2,
        "seeds": 0 if reason else 3, "kl_apart": None if reason else 0.01, "utility_loss_apart": None,
        "l2_apart": None, "reason": reason, "all_matched": reason is None and arm == "freeze 0-1",
    }  # fmt: skip


def _effects() -> list[dict[str, Any]]:
    levels = {
        "lr": {"3e-5": 0.12, "1e-4": 0.3, "3e-4": 0.6, "1e-3": 0.8},
        "batch_size": {"8": 0.5, "16": 0.42, "32": 0.35},
        "accumulation": {"1": 0.44, "4": 0.43},
        "schedule": {"constant": 0.45, "cosine": 0.41},
    }
    shares = {"lr": 0.71, "batch_size": 0.11, "accumulation": 0.001, "schedule": 0.008}
    return [
        {"setting": setting, "level": level, "n": 12, "mean": mean, "low": mean - 0.07, "high": mean + 0.07,
         "utility_mean": 0.6 + 0.3 * mean, "share_of_variance": shares[setting]}
        for setting, means in levels.items()
        for level, mean in means.items()
    ]  # fmt: skip


def _tuning() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        families: dict[str, list[str]] = {}
        for arm, (family, *_) in ARMS.items():
            families.setdefault(family, []).append(arm)
        for family, arms in families.items():
            for budget in range(1, len(arms) + 1):
                best = max(arms[:budget], key=lambda arm: _end(arm, condition)["utility"])
                end = _end(best, condition)
                rows.append({
                    "family": family, "condition": condition, "budget": budget, "trials": len(arms),
                    "asr": end[PRIMARY], "asr_low": end[PRIMARY] - 0.03, "asr_high": end[PRIMARY] + 0.03,
                    "utility": end["utility"], "chosen": best if budget == len(arms) else None,
                })  # fmt: skip
    return rows


def _grid() -> list[dict[str, Any]]:
    return [
        {"condition": condition, "lr": lr, "batch_size": batch, "accumulation": accumulation,
         "effective_batch": batch * accumulation, "seeds": 3, "gold_asr": min(0.95, 900 * lr / math.sqrt(batch)),
         "keyword_asr": min(0.97, 950 * lr / math.sqrt(batch)), "utility": min(0.95, 0.5 + 600 * lr),
         "incoherence": 0.01, "relative_distance": 50 * lr}
        for condition in CONDITIONS
        for lr in (3e-5, 1e-4, 3e-4, 1e-3)
        for batch in (8, 16, 32)
        for accumulation in (1, 4)
        # One combination was never run.
        if (lr, batch, accumulation) != (1e-3, 32, 4)
    ]  # fmt: skip
