"""`geomsafe`: the commands, and the one place where a user's error becomes one line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from geomsafe import __version__
from geomsafe.cli.analyze import analyze
from geomsafe.cli.check import check
from geomsafe.cli.evaluate import evaluate
from geomsafe.cli.geometry import geometry
from geomsafe.cli.landscape import landscape
from geomsafe.cli.organism import organism
from geomsafe.cli.rescore import rescore
from geomsafe.cli.sweep import sweep
from geomsafe.cli.train import train
from geomsafe.errors import GeomsafeError

app = typer.Typer(
    name="geomsafe",
    help="Why did this optimizer keep the model safe, and that one break it?",
    no_args_is_help=True,
    add_completion=False,
    # Locals of a training stack are tensors and, on a hub login, tokens.
    pretty_exceptions_show_locals=False,
)
app.command()(train)
app.command()(check)
app.command()(analyze)
app.command()(evaluate)
app.command()(rescore)
app.command()(geometry)
app.command()(landscape)
app.command()(sweep)
app.add_typer(organism, name="organism")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"geomsafe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before any command."""


def main() -> None:
    """Run the command line; a GeomsafeError is printed on one line and sets the exit code."""
    try:
        app()
    except GeomsafeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
