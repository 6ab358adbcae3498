"""What the first screen may say about a sweep: its own contrasts, in the words and by the rules of all reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geomsafe.analyses import verdict
from geomsafe.reports.claims import (
    FEWEST_SEEDS,
    MOST_CLAUSES,
    damage_banners,
    damage_words,
    make_sentence,
    measure_name,
    method_clause,
    mixed_banners,
)
from geomsafe.reports.sweep_arms import Sweep, SweepArm
from geomsafe.reports.sweep_contrasts import SweepContrast
from geomsafe.reports.sweep_table import mean_rate
from geomsafe.reports.wording import percent, plural, points, points_interval


def sweep_verdict(sweep: Sweep, contrasts: Sequence[SweepContrast], scope: dict[str, Any]) -> dict[str, Any]:
    """Write the verdict sentence of a sweep.

    The clauses are chosen before any outcome is read, in the order of the plan: the first contrast of settings that is
    not there to match a method, then the first methods.

    Args:
        sweep: the arms.
        contrasts: (arms,) each against its first control.
        scope: model, number of prompts and clusters.

    Returns:
        As `claims.make_verdict` does.
    """
    judged = [one for one in contrasts if one.difference is not None]
    seeds = max((one.paired_seeds for one in judged), default=0)
    strength = verdict.strength(seeds, starts=1)
    methods = [one for one in judged if not one.arm.is_plain]
    matching = {one.control for one in methods}
    settings = [one for one in judged if one.arm.is_plain and one.arm.name not in matching]
    clauses = [_settings_clause(sweep, one) for one in settings[:1]]
    clauses += [_method_clause(sweep, one) for one in methods[:MOST_CLAUSES]]
    if len(judged) > len(clauses):
        clauses.append(f"{plural(len(judged) - len(clauses), 'more contrast')} in the table of the sweep")
    return {
        **make_sentence(scope, seeds, strength, "; ".join(clauses) or _no_contrast(sweep)),
        "measure": sweep.primary.key,
        "claims": [
            {
                "arm": one.arm.name,
                "condition": one.arm.condition,
                "kind": "settings" if one.arm.is_plain else "sweep's control",
                "word": one.word,
                "difference": one.difference.difference if one.difference else None,
            }
            for one in judged
        ],
    }


def sweep_banners(
    sweep: Sweep,
    contrasts: Sequence[SweepContrast],
    matched: Sequence[dict[str, Any]],
    mixed: Sequence[str],
    strength: str,
) -> list[str]:
    """Return the red banners of a sweep.

    Args:
        sweep: the arms.
        contrasts: (arms,) each against its first control.
        matched: the table of matched comparisons.
        mixed: what makes the runs incomparable, when they were mixed on purpose.
        strength: of the verdict.

    Returns:
        One sentence each.
    """
    found = mixed_banners(mixed)
    methods = [one for one in contrasts if one.arm.places and not one.arm.is_plain]
    # What others are compared with is a control itself and needs none.
    controlling = {name for names in sweep.record.controls.values() for name in names}
    alone = dict.fromkeys(one.arm.name for one in methods if one.control is None and one.arm.name not in controlling)
    found += [f"No matched control for {name}: the plan of the sweep names none." for name in alone]
    unpaired = [shown_arm(sweep, one.arm) for one in methods if one.control and one.difference is None]
    found += [f"No matched control for {name}: no seed and prompt that both were scored on." for name in unpaired]
    for one in contrasts:
        if strength != "descriptive" and one.word not in {None, "underpowered"} and one.paired_seeds < FEWEST_SEEDS:
            found.append(f"Fewer than {FEWEST_SEEDS} seeds behind '{one.word}' for {shown_arm(sweep, one.arm)}.")
    found += damage_banners([(shown_arm(sweep, arm), mean_rate(arm, "incoherence")) for arm in sweep.arms])
    controls = {(one.arm.condition, one.arm.name): one for one in methods}
    apart = [
        shown_arm(sweep, own.arm)
        for row in matched
        if (own := controls.get((row["condition"], row["arm"]))) is not None
        and (row["comparator"], row["axis"]) == (own.control, "l2")
        and "no common support" in (row.get("reason") or "")
    ]
    if apart:
        found.append(f"Empty common support: the control's curve does not reach the distance of {', '.join(apart)}.")
    return found


def shown_arm(sweep: Sweep, arm: SweepArm) -> str:
    """Return an arm's name, with its condition where the sweep has several."""
    return f"{arm.name} ({arm.condition})" if len(sweep.conditions) > 1 else arm.name


def _settings_clause(sweep: Sweep, one: SweepContrast) -> str:
    if one.difference is None:
        return ""
    found = one.difference
    return (
        f"changing the settings ({one.control} → {shown_arm(sweep, one.arm)}) changes "
        f"{measure_name(sweep.primary.key)} by {points(found.difference)} points "
        f"{points_interval(found.low, found.high)}{damage_words(mean_rate(one.arm, 'incoherence') or 0.0)}"
    )


def _method_clause(sweep: Sweep, one: SweepContrast) -> str:
    if one.difference is None or one.word is None:
        return ""
    incoherent = mean_rate(one.arm, "incoherence") or 0.0
    return method_clause(shown_arm(sweep, one.arm), f"its control {one.control}", one.difference, one.word, incoherent)


def _no_contrast(sweep: Sweep) -> str:
    shown = [
        f"{shown_arm(sweep, arm)} has {percent(rate)}"
        for arm in sweep.arms
        if (rate := mean_rate(arm, sweep.primary.key)) is not None
    ]
    if not shown:
        return "no fine-tuned weights were scored on harmful prompts, so nothing is claimed about safety"
    return (
        f"{measure_name(sweep.primary.key)}: {'; '.join(shown[:MOST_CLAUSES])}; "
        "no arm was paired with a control, so no effect is claimed"
    )
