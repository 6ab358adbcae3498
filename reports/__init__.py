"""Run directories in; analysis.json, a CSV of every table and one self-contained report.html out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geomsafe.reports.collect import collect, write_analysis
from geomsafe.reports.images import write_images
from geomsafe.reports.page import write_page
from geomsafe.reports.summary import summary_table

__all__ = ["analyze", "summary_table"]


def analyze(
    runs: Sequence[Path],
    out: Path,
    *,
    allow_mixed: bool = False,
    images: Path | None = None,
    which: str = "*",
    kind: str = "svg",
) -> Path:
    """Analyse run directories and write the report. Needs no model and no torch.

    Args:
        runs: run directories, and at most one folder of a sweep, which stands for its runs; missing, unfinished and
            failed ones are listed with their cause.
        out: folder for report.html, analysis.json and tables/.
        allow_mixed: compare runs of different theta_0, template or prompts, under a red banner.
        images: where figures are written as files too.
        which: pattern of their ids.
        kind: svg, png or pdf.

    Returns:
        The path of report.html.

    Raises:
        RecordError: no finished run, a broken one, or runs that cannot be compared.
    """  # noqa: DOC502 - collect raises it
    analysis = collect(list(runs), out, allow_mixed=allow_mixed)
    write_analysis(analysis, out)
    page = write_page(analysis, out)
    if images is not None:
        write_images(analysis, images, which, kind)
    return page
