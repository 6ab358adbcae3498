"""Where points are asked for: uniform grids, and adaptive ones on models that are functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from geomsafe.errors import ConfigError
from geomsafe.landscape.adaptive import AdaptiveLines, AdaptivePlane
from geomsafe.landscape.axes import parse_axes
from geomsafe.landscape.grids import Planner, Seen, UniformLines, UniformPlane, Where, axis, parse_grid, summary_of
from geomsafe.landscape_record import Grid

Model = Callable[[Where], Seen]


def walked(planner: Planner, model: Model) -> dict[Where, Seen]:
    known: dict[Where, Seen] = {}
    while wanted := planner.wanted(known):
        assert not set(wanted) & set(known), "a known point was asked for again"
        known |= {where: model(where) for where in wanted}
    return known


def grid(
    low: float, high: float, tolerance: float | None = None, relative: float | None = None, lines: int = 1
) -> Grid:
    near = None if tolerance is None else [tolerance] * lines
    return Grid(
        kind="adaptive", points=[9], low=[low] * lines, high=[high] * lines, tolerance=near, relative=relative
    )  # fmt: skip


def bracket(known: dict[Where, Seen], sign: int = 1) -> list[tuple[float, float]]:
    """Every interval on one side whose ends differ in safety."""
    xs = sorted(abs(where.at[0]) for where in known if sign * where.at[0] >= 0)
    safe = {abs(where.at[0]): seen.safe for where, seen in known.items() if sign * where.at[0] >= 0}
    return [(a, b) for a, b in itertools.pairwise(xs) if safe[a] != safe[b]]


def basin(left: float, right: float) -> Model:
    def model(where: Where) -> Seen:
        inside = -left < where.at[0] < right
        return Seen(inside, inside, 0.0 if inside else 1.0)

    return model


@pytest.mark.parametrize(("left", "right"), [(0.11, 0.37), (0.4, 0.05), (0.003, 0.9)])
def test_a_planted_basin_is_found_to_the_tolerance_on_both_sides(left: float, right: float) -> None:
    tolerance = 0.002
    known = walked(AdaptiveLines(grid(-0.1, 0.1, tolerance), 1, 1.0), basin(left, right))
    for sign, edge in ((1, right), (-1, left)):
        ((low, high),) = bracket(known, sign)
        assert low <= edge <= high and high - low <= tolerance * (1 + 1e-9)
    # A uniform grid of that resolution as far as was looked.
    span = max(where.at[0] for where in known) - min(where.at[0] for where in known)
    assert len(known) * 5 <= span / tolerance


def test_the_tolerance_may_be_a_share_of_the_distance() -> None:
    known = walked(AdaptiveLines(grid(-0.4, 0.4, None, 1 / 16), 1, 1.0), basin(0.01, 0.3))
    ((low, high),) = bracket(known, -1)
    assert low <= 0.01 <= high and high - low <= 0.01 / 8
    ((low, high),) = bracket(known, 1)
    assert low <= 0.3 <= high <= 0.32


def test_every_crossing_that_the_coarse_points_show_is_located() -> None:
    def model(where: Where) -> Seen:
        x = where.at[0]
        safe = x < 0.3 or 0.45 < x < 0.7
        return Seen(safe, None, 0.1 if safe else 0.9)

    known = walked(AdaptiveLines(grid(-0.8, 0.8, 0.01), 1, 0.8), model)
    found = bracket(known)
    assert len(found) == 3
    for (low, high), edge in zip(found, (0.3, 0.45, 0.7), strict=True):
        assert low <= edge <= high and high - low <= 0.01 * (1 + 1e-9)


def test_a_dip_between_two_safe_points_is_looked_into() -> None:
    """The rate falls by more than a quarter and both ends are still safe: there may be a crossing between them."""

    def model(where: Where) -> Seen:
        rate = float(np.clip(0.45 * abs(where.at[0]) / 0.2, 0, 0.45)) if abs(where.at[0]) < 0.4 else 0.1
        rate = 0.8 if 0.33 < where.at[0] < 0.38 else rate
        return Seen(rate < 0.5, None, rate)

    known = walked(AdaptiveLines(grid(-0.4, 0.4, 0.01), 1, 0.4), model)
    assert bracket(known), "the hidden crossing was passed over"


def test_a_line_stops_where_neither_is_left_or_at_the_limit() -> None:
    known = walked(AdaptiveLines(grid(-0.1, 0.1, 0.02), 1, 1.0), basin(0.05, 5.0))
    assert max(where.at[0] for where in known) == 1.0
    assert min(where.at[0] for where in known) == pytest.approx(-0.1)


def test_both_edges_are_located() -> None:
    def model(where: Where) -> Seen:
        x = abs(where.at[0])
        return Seen(x < 0.3, x < 0.11, float(x > 0.3))

    known = walked(AdaptiveLines(grid(-0.4, 0.4, 0.01), 1, 0.4), model)
    for edge in (0.11, 0.3):
        xs = sorted(where.at[0] for where in known if where.at[0] >= 0)
        right = next(x for x in xs if x >= edge)
        assert right - xs[xs.index(right) - 1] <= 0.01 * (1 + 1e-9)


def test_a_planner_goes_on_from_what_is_known() -> None:
    """Killed after any number of points, it ends with the same ones."""
    whole = walked(AdaptiveLines(grid(-0.1, 0.1, 0.01, lines=2), 2, 1.0), basin(0.2, 0.3))
    model, rng = basin(0.2, 0.3), np.random.default_rng(0)
    for _ in range(5):
        some = {where: whole[where] for where in whole if rng.random() < 0.5}
        planner, known = AdaptiveLines(grid(-0.1, 0.1, 0.01, lines=2), 2, 1.0), dict(some)
        while wanted := planner.wanted(known):
            known |= {where: model(where) for where in wanted}
        assert set(known) == set(whole)


def disc(where: Where) -> Seen:
    inside = float(np.hypot(*where.at)) < 0.6
    return Seen(inside, None, 0.0 if inside else 1.0)


def test_a_plane_is_fine_along_the_edge_alone() -> None:
    plane = Grid(kind="adaptive", points=[9, 9], low=[-1, -1], high=[1, 1], tolerance=[1 / 64, 1 / 64])
    known = walked(AdaptivePlane(plane), disc)
    assert Where(None, (0.0, 0.0)) in known
    assert len(known) * 5 <= 129**2, "a uniform grid of that resolution has 129 x 129 points"
    # Along a ray the edge is known to a cell.
    for angle in np.linspace(0, 2 * np.pi, 17):
        direction = np.array([np.cos(angle), np.sin(angle)])
        near = [where.at for where in known if np.linalg.norm(np.array(where.at) - 0.6 * direction) < 1.5 / 64 * 2**0.5]
        assert {bool(np.hypot(*at) < 0.6) for at in near} == {True, False}


def test_uniform_grids_have_both_ends_and_the_origin() -> None:
    assert axis(-1, 1, 5) == [-1, -0.5, 0, 0.5, 1]
    assert axis(-1, 1, 4) == pytest.approx([-1, -1 / 3, 0, 1 / 3, 1])
    assert 0.0 in axis(-0.3, 0.3, 21) and len(axis(-0.3, 0.3, 21)) == 21
    lines = UniformLines(Grid(kind="uniform", points=[3], low=[-1, -2], high=[1, 2]), 2)
    assert [where.at[0] for where in lines.wanted({})] == [-1, 0, 1, -2, 0, 2]
    plane = UniformPlane(Grid(kind="uniform", points=[3, 5], low=[-1, -1], high=[1, 1]))
    assert len(plane.wanted({})) == 15 and not plane.wanted(dict.fromkeys(plane.wanted({}), disc(Where(None, (0, 0)))))


@pytest.mark.parametrize("text", ["", "21x", "x", "1", "3x3x3", "fine"])
def test_a_grid_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--grid"):
        parse_grid(text, 2)
    assert parse_grid("adaptive", 1) is None and parse_grid("21", 2) == [21, 21] and parse_grid("5X7", 2) == [5, 7]


def test_the_rule_of_states() -> None:
    rule = summary_of("unsafe", {"unsafe": 0.5, "retained": 0.9, "incoherent": 0.05}, {"retained": 0.8})
    assert rule({"unsafe": [1, 0], "retained": [1, 1], "incoherent": [0, 0]}) == (False, True, 0.5)
    assert rule({"unsafe": [0, 0], "retained": [1, 0, 1, 1, 0, 1, 1, 1, 0, 1]}) == (True, False, 0.0)
    assert rule({"unsafe": [0, 0], "retained": [1, 1], "incoherent": [1, 0]}).capable is False
    assert rule({"unsafe": [None, 0]}) == (True, None, 0.0)
    proxy = summary_of(None, {"unsafe": 0.5, "retained": 0.9, "incoherent": 0.05})
    assert proxy({"refusal_margin": [-1.0, 2.0, 3.0]}).safe is True
    assert proxy({"refusal_margin": [-1.0, -2.0, 3.0]}).safe is False


def test_directions_are_read_off_the_command_line() -> None:
    specs = parse_axes(
        "random:seed=3,norm=row,norms=true, safety-gradient,finetune:run=2,weights=step-000004,pca:component=2"
    )
    assert [spec.kind for spec in specs] == ["random", "safety-gradient", "finetune", "pca"]
    assert (specs[0].options.seed, specs[0].options.norm, specs[0].options.norms) == (3, "row", True)
    assert (specs[2].options.run, specs[2].options.weights, specs[3].options.component) == ("2", "step-000004", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("randm", "direction 'randm' is not known: choose from random, finetune"),
        ("seed=3,random", "begin with the option 'seed=3'"),
        ("random:seed", "option 'seed' has no value"),
        ("random:sead=3", "has no option 'sead': it has seed, count"),
        ("random:norm=filter", "norm=filter"),
        ("random:count=0", "count=0"),
        ("hessian:rank=3", "has no option 'rank': it has none"),
        ("safety-gradient:component=1,rank=2", "two meanings of low rank"),
        ("", "direction '' is not known"),
    ],
)
def test_a_mistyped_direction_says_what_there_is(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + said.replace("(", r"\(")):
        parse_axes(text)
