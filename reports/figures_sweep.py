"""What the figures of a sweep share: conditions, how each arm looks, which arms are drawn first, legend and switch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from geomsafe.reports.columns import COLUMNS
from geomsafe.reports.figures import COLOURS, MOST_PANELS, SYMBOLS

# The reference's family is dark grey, so that colours belong to what is compared with it.
REFERENCE_COLOUR = "#4b5563"
FAMILY_COLOURS = COLOURS[:7]
# Dots join an arm to its control.
DASHES = ("solid", "dash", "longdash", "dashdot")
# Curves of more arms than this are not told apart at first sight; the legend shows the others.
FIRST_ARMS = 8
LONGEST_NAME = 34


class SweepLook(NamedTuple):
    """How an arm of a sweep is drawn in every figure of the sweep."""

    arm: str
    family: str
    colour: str
    symbol: str
    dash: str

    @property
    def name(self) -> str:
        """The arm, short enough for a legend."""
        return shortened(self.arm)


def analysed(analysis: Mapping[str, Any]) -> bool:
    """Return whether the analysis is that of a sweep."""
    return bool(analysis.get("sweep")) and bool(analysis["tables"]["sweep"]["rows"])


def primary_of(analysis: Mapping[str, Any]) -> tuple[str, str]:
    """Return the column of the primary attack success rate, and its title."""
    key = str(analysis["sweep"]["primary"])
    return key, COLUMNS[key].title


def conditions(analysis: Mapping[str, Any]) -> list[str]:
    """Return the conditions of the sweep in the order of its table; [""] where it has none."""
    return list(dict.fromkeys(row["condition"] or "" for row in analysis["tables"]["sweep"]["rows"]))


def of_condition(rows: Iterable[dict[str, Any]], condition: str) -> list[dict[str, Any]]:
    """Return the rows of one condition."""
    return [row for row in rows if (row["condition"] or "") == condition]


def panelled_conditions(analysis: Mapping[str, Any], most: int = MOST_PANELS) -> tuple[list[str], str]:
    """Choose the conditions that get a panel.

    Args:
        analysis: analysis.json of a sweep.
        most: panels.

    Returns:
        The conditions, and a sentence for the limitation on those left out.
    """
    found = conditions(analysis)
    left_out = len(found) - most
    return found[:most], f" {left_out} more conditions are in the CSV." if left_out > 0 else ""


def sweep_looks(analysis: Mapping[str, Any]) -> dict[str, SweepLook]:
    """Give each arm its family's colour, and a symbol and dash that tell it from the others of that colour.

    Args:
        analysis: analysis.json of a sweep.

    Returns:
        Arm -> look, the reference first, then in the order of the table.
    """
    rows = analysis["tables"]["sweep"]["rows"]
    reference = analysis["sweep"]["reference"]
    families = {row["arm"]: row["family"] or row["arm"] for row in rows}
    plain = families.get(reference)
    others = [family for family in dict.fromkeys(families.values()) if family != plain]
    colours = {family: FAMILY_COLOURS[index % len(FAMILY_COLOURS)] for index, family in enumerate(others)}
    if plain is not None:
        colours[plain] = REFERENCE_COLOUR
    used: dict[str, int] = {}
    looks: dict[str, SweepLook] = {}
    for arm in sorted(families, key=lambda arm: arm != reference):
        colour = colours[families[arm]]
        index = used.setdefault(colour, 0)
        used[colour] += 1
        looks[arm] = SweepLook(arm, families[arm], colour, SYMBOLS[index % len(SYMBOLS)], DASHES[index % len(DASHES)])
    return looks


def first_arms(analysis: Mapping[str, Any]) -> list[str]:
    """Choose the arms that are visible at first: never by attack success.

    Args:
        analysis: analysis.json of a sweep.

    Returns:
        At most 8: the reference, then of each family the arm chosen by validation utility (else its
        first) with its control, then others in the order of the table.
    """
    rows = analysis["tables"]["sweep"]["rows"]
    chosen = {row["family"]: row["chosen"] for row in analysis["tables"]["tuning"]["rows"] if row["chosen"]}
    controls = {row["arm"]: row["control"] for row in rows if row["control"]}
    wanted: dict[str, None] = {}
    present = {row["arm"] for row in rows}
    for look in sweep_looks(analysis).values():
        arm = chosen.get(look.family, look.arm)
        if not wanted:
            arm = look.arm
        if arm in wanted or arm not in present:
            continue
        wanted[arm] = None
        if controls.get(arm) in present:
            wanted.setdefault(controls[arm])
    for row in rows:
        wanted.setdefault(row["arm"])
    return list(wanted)[:FIRST_ARMS]


def side_legend(title: str = "") -> dict[str, Any]:
    """Return plotly's settings of a legend beside the plot, which scrolls where a sweep has many arms."""
    return {
        "orientation": "v",
        "x": 1.015,
        "xanchor": "left",
        "y": 1,
        "yanchor": "top",
        "font": {"size": 11},
        "title": {"text": title, "font": {"size": 11}},
        "tracegroupgap": 0,
    }


def switch(buttons: Sequence[dict[str, Any]], top: float, active: int = 0) -> list[dict[str, Any]]:
    """Return plotly's row of buttons above a plot.

    Args:
        buttons: label, method and args of each.
        top: distance from the upper edge of the panels, as a share of their height.
        active: the button that is on at first.

    Returns:
        The setting `updatemenus`; empty where there is nothing to choose.
    """
    if len(buttons) < 2:
        return []
    return [
        {
            "type": "buttons",
            "direction": "right",
            "buttons": list(buttons),
            "active": active,
            "x": 0,
            "xanchor": "left",
            "y": 1 + top,
            "yanchor": "bottom",
            "pad": {"l": 0, "t": 0, "b": 0, "r": 0},
            "font": {"size": 12},
            "bgcolor": "white",
            "bordercolor": "#c3c8d0",
            "showactive": True,
        }
    ]


def condition_switch(names: Sequence[str], belongs: Sequence[str], top: float) -> list[dict[str, Any]]:
    """Return buttons that show the traces of one condition.

    Args:
        names: the conditions.
        belongs: (traces,) the condition of each trace.
        top: as in `switch`.

    Returns:
        The setting `updatemenus`.
    """
    return switch(
        [
            {"label": shortened(name), "method": "restyle", "args": [{"visible": [one == name for one in belongs]}]}
            for name in names
        ],
        top,
    )


def shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a name cut where labels have no room; hover texts and the table have all of it."""
    # Names of a grid differ at their end.
    tail = longest // 3
    return text if len(text) <= longest else f"{text[: longest - tail - 1]}…{text[-tail:]}"
