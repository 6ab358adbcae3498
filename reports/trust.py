"""The trust strip: what was checked on these runs. Grey means not run, and is never hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geomsafe.analyses import drift, pairing
from geomsafe.reports.arms import Study
from geomsafe.reports.judging import GOLD, KEYWORDS
from geomsafe.reports.wording import plural

Light = dict[str, str]

# Landis & Koch 1977: above .8 almost perfect, above .6 substantial.
KAPPA = (0.8, 0.6)
# Matching on L2 within 2 % is what "matched" means; beyond 10 % it is another place.
MISMATCH = (0.02, 0.10)
PROXY = 0.9
WANTED_NULLS = ("untrained", "random-tokens", "benign-length", "loss-matched", "sham", "benign")


def make_trust(study: Study, tables: dict[str, Any]) -> list[Light]:
    """Return one light a check.

    Args:
        study: arms and contrasts.
        tables: the tables of analysis.json.

    Returns:
        key, title, state (green, amber, red or grey), detail and the section it links to.
    """
    return [
        _gradient(study),
        _captured(study),
        _mismatch(study, tables["arms"]["rows"]),
        _proxy(study, tables),
        _judges(tables["judges"]["rows"]),
        _seeds(study, tables["arms"]["rows"]),
        _nulls(study, tables),
        _rerun(study),
        _kl(study),
    ]  # fmt: skip


def _light(key: str, title: str, state: str, detail: str, section: str) -> Light:
    return {"key": key, "title": title, "state": state, "detail": detail, "section": section}


def _gradient(study: Study) -> Light:
    # Written by a check of hooks against autograd on the user's own model.
    title = "Gradient against autograd"
    checks = [run.record.provenance.get("checks", {}).get("gradients") for run in study.runs.values()]
    found = [one for one in checks if isinstance(one, dict) and {"relative_error", "tolerance"} <= set(one)]
    if not found:
        return _light("gradient", title, "grey", "not run here: geomsafe check compares both on a model", "cosines")
    worst = max(float(one["relative_error"]) for one in found)
    failed = any(float(one["relative_error"]) > float(one["tolerance"]) for one in found)
    state = "red" if failed else "green" if len(found) == len(checks) else "amber"
    detail = f"relative error {worst:.1e} at most, in {len(found)} of {plural(len(checks), 'run')}"
    return _light("gradient", title, state, detail, "cosines")


def _nulls(study: Study, tables: dict[str, Any]) -> Light:
    title = "Nulls for spectra and conflict"
    rows = tables["nulls"]["rows"]
    usable = {(row["run"], row["null"]) for row in rows if row["reason"] is None and row["matrices"]}
    anchored = {row["run"] for row in tables["cosines"]["rows"] if row["claimed"] is not None}
    measured = sorted({null for _, null in usable})
    if not usable and not anchored:
        why = (
            f"not comparable: {rows[0]['reason']}" if rows else "not run: untrained, random tokens, benign anchor, sham"
        )
        return _light("nulls", title, "grey", why, "excess")
    missing = [null for null in WANTED_NULLS if any((run, null) not in usable for run in study.runs)]
    missing += ["anchor for conflict"] if len(anchored) < len(study.runs) else []
    if not missing:
        return _light("nulls", title, "green", f"{', '.join(measured)}; equal counts in every run", "excess")
    return _light(
        "nulls", title, "amber", f"{', '.join(measured) or 'anchor'}; not in every run: {', '.join(missing)}", "excess"
    )


def _captured(study: Study) -> Light:
    title = "Parameters captured"
    shares = []
    for run in study.runs.values():
        trained = run.record.model.get("trainable_parameters")
        # LoRA trains factors and is measured on whole weights: there is nothing to count against.
        if run.captures and isinstance(trained, int) and trained > 0 and not run.record.model.get("lora"):
            shares.append(min(capture.parameters for capture in run.captures) / trained)
    tensors = {len(capture.names) for run in study.runs.values() for capture in run.captures}
    if not tensors:
        return _light("captured", title, "grey", "not run: no captures in these runs", "cosines")
    if not shares:
        return _light("captured", title, "amber", f"{min(tensors)} tensors, of a number not recorded", "cosines")
    state = "green" if min(shares) == max(shares) == 1 else "red"
    return _light(
        "captured", title, state, f"{min(tensors)} tensors, {100 * min(shares):.4g} % of what is trained", "cosines"
    )


def _mismatch(study: Study, rows: Sequence[dict[str, Any]]) -> Light:
    title = "Mismatch to the matched control"
    place = {row["key"]: row["distance"] for row in rows}
    found = []
    for result in study.results:
        control = next((arm for arm in study.arms if arm.key == result.contrast.control), None)
        if result.contrast.kind != "learning rate x eta" or control is None:
            continue
        ours, theirs = place.get(study.name(result.arm)), place.get(study.name(control))
        if ours is not None and theirs:
            found.append(abs(ours - theirs) / theirs)
    if not found:
        return _light("mismatch", title, "grey", "not run: no EMA fed back beside its lr-matched control", "arms")
    worst = max(found)
    state = "green" if worst <= MISMATCH[0] else "amber" if worst <= MISMATCH[1] else "red"
    return _light(
        "mismatch", title, state, f"distance differs by {100 * worst:.2g} % (limit {100 * MISMATCH[0]:.0f} %)", "arms"
    )


def _proxy(study: Study, tables: dict[str, Any]) -> Light:
    title = "Refusal margin foretells ASR"
    rows = tables["proxies"]["rows"]
    # A margin needs openings of compliance; log-odds do without.
    found = next((row for row in rows if row["proxy"] == "refusal_margin"), rows[0] if rows else None)
    if found is None:
        return _proxy_of_probes(study, tables, title)
    state = {"valid": "green", "not valid": "amber", "undefined": "grey"}[found["validity"]]
    others = [f"{row['proxy'].removeprefix('refusal_')} {row['validity']}" for row in rows if row is not found]
    detail = f"{found['proxy'].removeprefix('refusal_')} {found['validity']}: {found['why']}"
    return _light("proxy", title, state, "; ".join([detail, *others]), "proxies")


def _proxy_of_probes(study: Study, tables: dict[str, Any], title: str) -> Light:
    # Runs of earlier versions: margins of the probes' prompts, whose answers nobody judged.
    key = study.primary.key
    margins = {(row["run"], row["step"]): row["refusal_margin"] for row in tables["probes"]["rows"]}
    pairs = [
        (margins[row["run"], row["step"]], row[key])
        for row in tables["points"]["rows"]
        if row["weights"] == "final" or row["weights"].startswith("step-")
        if margins.get((row["run"], row["step"])) is not None and row[key] is not None
    ]
    found = drift.monotone_association([margin for margin, _ in pairs], [asr for _, asr in pairs])
    if found.rho is None:
        return _light("proxy", title, "grey", "not run: too few weight sets with both", "probes")
    state = "amber" if -found.rho >= PROXY else "red"
    detail = f"Spearman {found.rho:.2f} over {found.n} weight sets (needs ≤ −.9); AUROC by prompt not run"
    return _light("proxy", title, state, detail, "probes")


def _judges(rows: Sequence[dict[str, Any]]) -> Light:
    title = "Keyword against gold judge"
    pair = ("all", GOLD, KEYWORDS)
    found = next((row for row in rows if (row["key"], row["first"], row["second"]) == pair), None)
    if found is None or found["kappa"] is None:
        why = "not run: no gold verdict" if found is None else "undefined: both judges are constant"
        return _light("judges", title, "grey", why, "judges")
    kappa = found["kappa"]
    state = "green" if kappa > KAPPA[0] else "amber" if kappa > KAPPA[1] else "red"
    return _light("judges", title, state, f"κ = {kappa:.2f} over {found['n']} answers", "judges")


def _seeds(study: Study, rows: Sequence[dict[str, Any]]) -> Light:
    seeds = max((len(arm.runs) for arm in study.arms), default=0)
    clusters = max((row["clusters"] or 0 for row in rows), default=0)
    state = "green" if seeds >= 8 else "amber"
    word = "descriptive" if seeds <= 3 else "exploratory"
    return _light(
        "seeds",
        "Seeds and clusters",
        state,
        f"{plural(seeds, 'seed')}, {plural(clusters, 'cluster')} of prompts: {word}",
        "arms",
    )


def _kl(study: Study) -> Light:
    title = "Drift as KL"
    measured = [any(drift.kl_task is not None for drift in run.record.drift.values()) for run in study.runs.values()]
    if not any(measured):
        return _light("kl", title, "grey", "not run: distance is L2 in weights only", "drift")
    state = "green" if all(measured) else "amber"
    return _light("kl", title, state, f"measured in {sum(measured)} of {plural(len(measured), 'run')}", "drift")


def _rerun(study: Study) -> Light:
    title = "Bitwise rerun"
    pairs = pairing.rerun_pairs([run.paired(name) for name, run in study.runs.items()])
    if not pairs:
        return _light("rerun", title, "grey", "not run: no run was repeated with its seed", "runs")
    # Losses of every step are the whole trajectory's fingerprint; weights are not compared here.
    same = [_losses(study, first) == _losses(study, again) for first, again in pairs]
    state = "green" if all(same) else "red"
    return _light("rerun", title, state, f"{sum(same)} of {len(same)} repeats have equal losses at every step", "runs")


def _losses(study: Study, run: str) -> list[Any]:
    return [step.get("loss") for step in study.runs[run].steps]
