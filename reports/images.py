"""Figures of a report as files, for papers and documents."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from geomsafe.errors import ConfigError
from geomsafe.reports.figures import Figure
from geomsafe.reports.page import all_figures

WIDTH = 1100
SCALE = 1.5


def write_images(analysis: dict[str, Any], folder: Path, which: str = "*", kind: str = "svg") -> list[Path]:
    """Write figures as they first appear on the page.

    Args:
        analysis: analysis.json.
        folder: where to.
        which: pattern of figure ids, such as "landscape-*".
        kind: svg, png or pdf.

    Returns:
        The files, <id>.<kind>.

    Raises:
        ConfigError: no figure has such an id, or what draws them is not installed.
    """  # noqa: DOC502
    figures = all_figures(analysis)
    chosen = [figure for figure in figures if fnmatch(figure.id, which)]
    if not chosen:
        known = ", ".join(figure.id for figure in figures)
        raise ConfigError(f"no figure is called '{which}': there are {known}")
    folder.mkdir(parents=True, exist_ok=True)
    return [_written(figure, folder / f"{figure.id}.{kind}") for figure in chosen]


def _written(figure: Figure, path: Path) -> Path:
    """Write one figure.

    Raises:
        ConfigError: kaleido is missing.
    """  # noqa: DOC201, DOC501
    plot: Any = go.Figure(figure.plot)
    # A picture has no buttons to press.
    plot.update_layout(updatemenus=[])
    try:
        plot.write_image(path, width=WIDTH, height=plot.layout.height, scale=SCALE)
    except (ImportError, ValueError) as error:
        # plotly says in either way that kaleido is missing.
        if "kaleido" not in str(error).lower():
            raise
        raise ConfigError("--images needs kaleido and a Chrome or Chromium: pip install geomsafe[images]") from None
    return path
