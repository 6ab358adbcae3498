"""Run directories -> analyses -> analysis.json, and a CSV of every table."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geomsafe import __version__
from geomsafe.records import RunRecord, content_sha256, write_atomic
from geomsafe.reports import (
    arms,
    attacks,
    browser,
    categories,
    caveats,
    claims,
    comparable,
    conflict_tables,
    geometry,
    gram_tables,
    judging,
    landscape_tables,
    measurements,
    progress,
    reading_tables,
    spectrum_tables,
    subspace_tables,
    trust,
)
from geomsafe.reports.arms import Study, make_study
from geomsafe.reports.basin_edges import edges_of
from geomsafe.reports.columns import table
from geomsafe.reports.landscapes import Terrain, read_terrains
from geomsafe.reports.runs import DIRECT
from geomsafe.reports.sources import LEFT_OUT, read_sources, shown_path
from geomsafe.reports.sweep_arms import Sweep, make_sweep, unscored
from geomsafe.reports.sweep_claims import sweep_banners, sweep_verdict
from geomsafe.reports.sweep_contrasts import SweepContrast, make_contrasts
from geomsafe.reports.sweep_markdown import matched_markdown, sweep_markdown
from geomsafe.reports.sweep_tables import sweep_tables

SCHEMA = "geomsafe.analysis/3"


def collect(paths: Sequence[Path], out: Path, *, allow_mixed: bool = False) -> dict[str, Any]:
    """Analyse run directories.

    Args:
        paths: run directories, and at most one folder of a sweep.
        out: where the report goes; named in the command that repeats it.
        allow_mixed: compare runs of different theta_0, template or prompts, under a red banner.

    Returns:
        The analysis, ready for JSON.

    Raises:
        RecordError: no finished run, a broken one, or runs that cannot be compared.
    """  # noqa: DOC502 - read_sources and refuse_mixed raise it
    runs, left_out, source = read_sources(paths)
    mixed = comparable.differences(list(runs.values()))
    if mixed and not allow_mixed:
        comparable.refuse_mixed(list(runs.values()))
    study = make_study(runs)
    sweep = make_sweep(source, study) if source else None
    contrasts = make_contrasts(sweep) if sweep else []
    terrains, unread = read_terrains({name: run.path for name, run in runs.items()})
    tables = sweep_tables(sweep, contrasts) | _tables(study, left_out) | _landscape_tables(terrains, unread, study)
    scope = _scope(study, tables["arms"]["rows"])
    said, banners = _claims(study, sweep, contrasts, scope, tables, mixed)
    return {
        "schema": SCHEMA,
        "geomsafe": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([
            "geomsafe",
            "analyze",
            *map(str, paths),
            "--out",
            str(out),
            *(["--allow-mixed"] if mixed else []),
        ]),
        "scope": scope,
        "verdict": said,
        "banners": banners,
        "trust": trust.make_trust(study, tables),
        "sweep": _sweep_head(sweep),
        "landscapes": landscape_tables.described(terrains),
        "tables": tables,
        "completions": browser.browse_completions(study, browser.MOST_ARMS if sweep else None),
        "provenance": {name: run.record.provenance for name, run in study.runs.items()},
        "configs": {name: run.record.config for name, run in study.runs.items()},
        "warnings": caveats.warnings_of(study, left_out) + (unscored(sweep) if sweep else []),
        "not_run": caveats.not_run(study, tables),
    }


def write_analysis(analysis: dict[str, Any], out: Path) -> None:
    """Write analysis.json and tables/*.csv, columns.csv saying what every column means; of a sweep also Markdown.

    Args:
        analysis: as `collect` returns it.
        out: the folder.
    """
    write_atomic(out / "analysis.json", json.dumps(analysis, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    meanings = []
    for name, one in analysis["tables"].items():
        keys = [column["key"] for column in one["columns"]]
        write_atomic(out / "tables" / f"{name}.csv", _csv([keys, *([row[key] for key in keys] for row in one["rows"])]))
        meanings += [
            [name, column["key"], column["title"], column["unit"], column["better"], column["definition"]]
            for column in one["columns"]
        ]
    header = ["table", "column", "title", "unit", "better", "definition"]
    write_atomic(out / "tables" / "columns.csv", _csv([header, *meanings]))
    if analysis["sweep"] is not None:
        write_atomic(out / "tables" / "sweep.md", sweep_markdown(analysis))
        write_atomic(out / "tables" / "matched.md", matched_markdown(analysis))


def _tables(study: Study, left_out: list[dict[str, Any]]) -> dict[str, Any]:
    points, spectra = arms.point_rows(study), spectrum_tables.spectrum_rows(study)
    return {
        name: table(title, note, keys, rows)
        for name, title, note, keys, rows in (
            ("arms", "Arms", "rates pooled over seeds, 95 % intervals by cluster of prompts; min and max over seeds",
             arms.arm_columns(), arms.arm_rows(study, points)),
            ("points", "Weight sets", "every scored weight set of every run, theta_0 once",
             arms.point_columns(), points),
            ("suites", "Suites", "every measure on every prompt set; the table of arms uses the first set of a kind",
             arms.SUITES, arms.suite_rows(study)),
            ("measurements", "Measurements", "utility beside judged answers; each value in its metric's unit",
             measurements.MEASUREMENTS, measurements.measurement_rows(study)),
            ("attacks", "Attacks", "same prompts under an attack and put as they are; attacks are never pooled",
             attacks.ATTACKS, attacks.attack_rows(study)),
            ("categories", "Categories", "attack success and over-refusal by tag of the prompts; nothing is adjusted",
             categories.CATEGORIES, categories.category_rows(study)),
            ("distances", "Distance per layer", "last iterates; L2 depends on the gauge",
             geometry.DISTANCES, geometry.distance_rows(study)),
            ("cosines", "Cosine of safety and utility gradients", "token-mean gradients; undefined where noise rules",
             conflict_tables.COSINES, conflict_tables.cosine_rows(study)),
            ("spectra", "Ranks of gradient matrices", "token-mean gradient of one weight; read beside its nulls",
             spectrum_tables.SPECTRA, spectra),
            ("ranks", "Ranks, medians", "medians over weight matrices and seeds; read beside the nulls",
             spectrum_tables.RANKS, spectrum_tables.rank_rows(spectra)),
            ("energy", "Cumulative energy", "quartiles over weight matrices; read beside the nulls",
             spectrum_tables.ENERGY, spectrum_tables.energy_rows(study)),
            ("excess", "Excess energy over nulls", "quartiles over weight matrices; equal example counts only",
             spectrum_tables.EXCESS, spectrum_tables.excess_rows(study)),
            ("nulls", "Nulls and controls", "measured at the first and last capture; a reason = not comparable",
             spectrum_tables.NULLS, spectrum_tables.null_rows(study)),
            ("gram_ranks", "Ranks of example Grams", "compare sets at equal numbers of examples only",
             gram_tables.GRAM_RANKS, gram_tables.gram_rank_rows(study)),
            ("rarefaction", "Ranks over the number of examples", "whole model; one example a cluster",
             gram_tables.RAREFACTION, gram_tables.rarefaction_rows(study)),
            ("overlaps", "Overlap of subspaces", "two kinds of subspace, named in each row; never read at one k",
             subspace_tables.OVERLAPS, subspace_tables.overlap_rows(study)),
            ("shares", "Shares of displacement and update", "in left spaces; controls beside safety",
             subspace_tables.SHARES, subspace_tables.share_rows(study)),
            ("singles", "Single examples", "each left out of the batch it is compared with, cluster and all",
             subspace_tables.SINGLES, subspace_tables.single_rows(study)),
            ("probes", "Probes over steps", "last iterates, on fixed probe sets",
             geometry.PROBES, geometry.probe_rows(study)),
            ("training", "Training steps", "every n-th step of long runs, and of many runs",
             progress.TRAINING, progress.training_rows(study)),
            ("shallow", "Divergence by answer position", "of given compliant answers to harmful prompts",
             reading_tables.SHALLOW, reading_tables.shallow_rows(study)),
            ("shallow_shares", "Share of the first positions", "a flat curve over m positions gives 5 / m",
             reading_tables.SHALLOW_SHARES, reading_tables.shallow_share_rows(study)),
            ("directions", "Refusal direction", "read AUROC beside random directions, cosines beside harmless halves",
             reading_tables.DIRECTIONS, reading_tables.direction_rows(study)),
            ("proxies", "Validity of proxies", "against primary attack success; every different weight set counts once",
             reading_tables.PROXIES, reading_tables.proxy_rows(study)),
            ("judges", "Judges on harmful prompts", "all pairs of judges of refusal, prompts put directly",
             judging.JUDGES, judging.judge_rows(study)),
            ("runs", "Runs", "settings and data by hash", RUNS, _run_rows(study)),
            ("left_out", "Runs left out", "not finished, so not analysed", LEFT_OUT, left_out),
        )
    }  # fmt: skip


def _landscape_tables(terrains: Sequence[Terrain], left_out: list[dict[str, Any]], study: Study) -> dict[str, Any]:
    lines = edges_of(terrains)
    return {
        name: table(title, note, keys, rows)
        for name, title, note, keys, rows in (
            ("landscapes", "Landscapes", "each is one theta_0 with its directions",
             landscape_tables.LANDSCAPES, landscape_tables.landscape_rows(terrains, left_out)),
            ("landscape_lines", "Curves", "means over prompts; intervals by cluster",
             landscape_tables.LINES, landscape_tables.line_rows(terrains)),
            ("landscape_bands", "Bands", "5th to 95th percentile over at least 10 random directions",
             landscape_tables.BANDS, landscape_tables.band_rows(terrains)),
            ("landscape_plane", "Planes", "means over prompts",
             landscape_tables.PLANE, landscape_tables.plane_rows(terrains)),
            ("landscape_paths", "Paths", "projections; read beside the share that lies outside",
             landscape_tables.PATHS, landscape_tables.path_rows(terrains)),
            ("basin_edges", "Edges of the basin", "first crossing on each side; bootstrap over clusters of prompts",
             landscape_tables.EDGES, landscape_tables.edge_rows(lines)),
            ("basin_widths", "Half-widths", "mean of both sides; random directions are the yardstick",
             landscape_tables.WIDTHS, landscape_tables.width_rows(lines)),
            ("visage", "VISAGE", "at its authors' settings; all directions: interval over directions and prompts",
             landscape_tables.VISAGES, landscape_tables.visage_rows(terrains)),
            ("basin_margins", "Margins", "on each run's own straight line, which is not its path",
             landscape_tables.MARGINS, landscape_tables.margin_rows(lines)),
            ("basin_prediction", "What foretells the end", "runs are taken as independent; nothing is corrected",
             landscape_tables.PREDICTIONS, landscape_tables.prediction_rows(lines, study.runs)),
        )
    }  # fmt: skip


RUNS = ["key", "run", "seed", "status", "created", "config_sha256", "data_sha256", "path"]


def _claims(
    study: Study,
    sweep: Sweep | None,
    contrasts: Sequence[SweepContrast],
    scope: dict[str, Any],
    tables: dict[str, Any],
    mixed: Sequence[str],
) -> tuple[dict[str, Any], list[str]]:
    # A sweep's plan names its controls; where there is none, they are found by rule.
    if sweep is not None:
        said = sweep_verdict(sweep, contrasts, scope)
        return said, sweep_banners(sweep, contrasts, tables["matched"]["rows"], mixed, said["strength"])
    rows = tables["arms"]["rows"]
    said = claims.make_verdict(study, scope, rows)
    return said, claims.make_banners(study, rows, mixed, said["strength"])


def _sweep_head(sweep: Sweep | None) -> dict[str, Any] | None:
    if sweep is None:
        return None
    return {
        "name": sweep.record.name,
        "reference": sweep.record.reference,
        "primary": sweep.primary.key,
        "conditions": sweep.conditions,
        "source": sweep.record.source,
    }


def _run_rows(study: Study) -> list[dict[str, Any]]:
    rows = []
    for name, run in study.runs.items():
        keys = [study.name(arm) for arm in study.arms if name in arm.runs.values()]
        rows.append({
            "key": ", ".join(keys) or None,
            "run": name,
            "seed": run.seed,
            "status": run.record.status,
            "created": run.record.created,
            "config_sha256": content_sha256([run.record.config]),
            "data_sha256": run.record.data.get("train", {}).get("sha256"),
            "path": shown_path(run.path),
        })
    return rows


def _scope(study: Study, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    record = study.first.record
    scored = [one for run in study.runs.values() for one in run.record.evaluations]
    harmful = [one for one in scored if one.kind == "harmful" and one.attack == DIRECT]
    return {
        "model": _model_name(record),
        "fingerprint": record.model.get("fingerprint"),
        "template_sha256": record.model.get("template_sha256"),
        "suites": {
            one.suite: {
                "kind": one.kind,
                "attack": one.attack,
                "source": one.source,
                "sha256": one.prompts_sha256,
                "n": one.n,
            }
            for one in scored
        },
        "settings": harmful[0].settings if harmful else {},
        "primary": study.primary.key,
        "prompts": max((one.n for one in harmful), default=0),
        "clusters": max((row["clusters"] or 0 for row in rows), default=0),
        "arms": {study.name(arm): arm.label for arm in study.arms},
        "seeds": sorted({run.seed for run in study.runs.values()}),
    }


def _model_name(record: RunRecord) -> str:
    source, parameters = str(record.config.get("model", "?")), record.model.get("parameters")
    size = f" ({_short_count(parameters)} parameters)" if isinstance(parameters, int) else ""
    kind = "" if source.startswith("organism") else "model "
    return f"{kind}{source}{size}"


def _short_count(count: int) -> str:
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
