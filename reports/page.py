"""One self-contained report.html: works offline and from file://, model text escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from geomsafe.records import write_atomic
from geomsafe.reports import wording
from geomsafe.reports.browser import packed
from geomsafe.reports.figures import START_LOOKS, Figure, looks
from geomsafe.reports.figures_attacks import attack_figure
from geomsafe.reports.figures_categories import category_figures
from geomsafe.reports.figures_conflict import cosine_figure, kinds_figure
from geomsafe.reports.figures_drift import drift_figure, rates_figure
from geomsafe.reports.figures_geometry import distance_figure, spectrum_figure
from geomsafe.reports.figures_judges import kappa_figure
from geomsafe.reports.figures_landscape import landscape_figures
from geomsafe.reports.figures_plane import plane_figures
from geomsafe.reports.figures_shallow import shallow_figure
from geomsafe.reports.figures_subspaces import (
    excess_figure,
    one_sample_figure,
    overlap_figure,
    rarefaction_figure,
    share_figure,
    share_steps_figure,
    sufficiency_figure,
    turn_figure,
)
from geomsafe.reports.figures_training import displacement_figure, training_figure
from geomsafe.reports.judging import other_judges
from geomsafe.reports.sweep_page import narrowed, sweep_context, swept_arms, with_names
from geomsafe.reports.visible import visible

MOST_ROWS = 8
SCRIPTS = ("report.js", "completions.js")


def write_page(analysis: dict[str, Any], out: Path) -> Path:
    """Render report.html from an analysis; nothing but the analysis is read.

    Args:
        analysis: analysis.json.
        out: the folder.

    Returns:
        The path of report.html.
    """
    page = out / "report.html"
    write_atomic(page, render(analysis))
    return page


def render(analysis: dict[str, Any]) -> str:
    """Render the page.

    Args:
        analysis: analysis.json.

    Returns:
        The HTML.
    """
    loader = PackageLoader("geomsafe.reports")
    environment = Environment(
        loader=loader,
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "percent_interval": wording.percent_interval,
        "points": wording.points,
        "points_interval": wording.points_interval,
        "number": wording.number,
        "plural": wording.plural,
        "visible": visible,
        "embedded": _embedded,
    }
    first_rows = first_screen(analysis)
    drawn, figures = _drawn(analysis, first_rows)
    sweep = sweep_context(analysis)
    landscape = [*landscape_figures(analysis), *plane_figures(analysis)]
    # The page carries the analysis once, for downloads; answers and settings stand in its text.
    carried = {key: value for key, value in analysis.items() if key not in {"completions", "configs", "provenance"}}
    carried["tables"] = {name: _columnar(one) for name, one in analysis["tables"].items()}
    return environment.get_template("report.html.j2").render(
        analysis=analysis,
        tables=analysis["tables"],
        figures={figure.id: figure for figure in (*figures, *sweep["sweep_figures"], *landscape)},
        landscape_figures=landscape,
        first_rows=first_rows,
        other_judges=other_judges(analysis["tables"]["judges"]["rows"]),
        looks=looks(drawn),
        arrows=wording.ARROWS,
        carried=carried,
        packed_completions=_browsed(analysis),
        columns={column["key"]: column for one in analysis["tables"].values() for column in one["columns"]},
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        style=Markup(loader.get_source(environment, "report.css")[0]),
        script=Markup("".join(loader.get_source(environment, name)[0] for name in SCRIPTS)),
        **sweep,
    )


def all_figures(analysis: dict[str, Any]) -> list[Figure]:
    """Draw every figure of the page.

    Args:
        analysis: analysis.json.

    Returns:
        The figures that have a plot.
    """
    _, figures = _drawn(analysis, first_screen(analysis))
    more = [*sweep_context(analysis)["sweep_figures"], *landscape_figures(analysis), *plane_figures(analysis)]
    return [figure for figure in (*figures, *more) if figure.plot is not None]


def _drawn(analysis: dict[str, Any], first_rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Figure]]:
    """Return the arms that are drawn, and the figures that every report has of them."""
    drawn, left_out = narrowed(analysis, {row["key"] for row in first_rows})
    figures = run_figures(with_names(drawn, swept_arms(analysis)))
    return drawn, [figure if figure.plot is None else figure.noted(left_out) for figure in figures]


def run_figures(analysis: dict[str, Any]) -> list[Figure]:
    """Draw the figures that every report has.

    Args:
        analysis: analysis.json.

    Returns:
        The figures.
    """
    return [
        drift_figure(analysis),
        rates_figure(analysis),
        attack_figure(analysis),
        *category_figures(analysis),
        distance_figure(analysis),
        cosine_figure(analysis),
        cosine_figure(analysis, "preconditioned"),
        kinds_figure(analysis),
        spectrum_figure(analysis),
        excess_figure(analysis),
        rarefaction_figure(analysis),
        overlap_figure(analysis, "example_span"),
        overlap_figure(analysis, "left_space"),
        turn_figure(analysis),
        share_figure(analysis),
        share_steps_figure(analysis),
        sufficiency_figure(analysis),
        one_sample_figure(analysis),
        training_figure(analysis),
        displacement_figure(analysis),
        shallow_figure(analysis),
        kappa_figure(analysis),
    ]


def first_screen(analysis: dict[str, Any]) -> list[dict[str, Any]]:
    """Choose the rows of the first table: theta_0, methods and their controls, then other baselines.

    Where a sweep was analysed, the arms that its figures show first come before all others.

    Args:
        analysis: analysis.json.

    Returns:
        At most 8 rows, in the order of the table of arms.
    """
    rows = analysis["tables"]["arms"]["rows"]
    methods = [row for row in rows if row["control_kind"] not in {None, "settings", "none"}]
    controls = {row["control"] for row in methods}
    repeats = {key for key, look in looks(analysis).items() if look.repeats}
    settings = [row for row in rows if row["control_kind"] in {"settings", "none"}]
    swept = swept_arms(analysis)
    ranked = [row for row in rows if row["control_kind"] is None]
    ranked += [row for key in swept for row in rows if row["key"] == key]
    ranked += methods + [row for row in settings if row["key"] in controls] + settings
    chosen = {row["key"]: None for row in ranked if row["key"] not in repeats}
    kept = set(list(chosen)[:MOST_ROWS])
    return [row for row in rows if row["key"] in kept]


def _browsed(analysis: dict[str, Any]) -> dict[str, Any]:
    # Colours and names are those of the table and the figures.
    known = START_LOOKS | looks(analysis)
    return {
        **packed(analysis["completions"]["rows"]),
        "colours": {key: look.colour for key, look in known.items()},
        "names": {key: look.label if key in START_LOOKS else f"{key} {look.label}" for key, look in known.items()},
    }


def _columnar(table: dict[str, Any]) -> dict[str, Any]:
    # Rows as lists: column names in every row would be most of the page.
    keys = [column["key"] for column in table["columns"]]
    return {"columns": keys, "rows": [[row[key] for key in keys] for row in table["rows"]]}


def _embedded(value: Any) -> Markup:
    """Return JSON that is safe inside a script element, whatever text it holds."""
    text = value.plot.to_json() if isinstance(value, Figure) and value.plot is not None else json.dumps(value)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
