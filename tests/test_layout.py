"""The architecture as a test: imports go one way, no circles, no junk drawer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"geomsafe.cli": "cli", "geomsafe.analyses": "analyses", "geomsafe.reports": "reports"}

# Inside geomsafe/, a room may import from its own floor's listed rooms and from every floor below it.
FLOORS = [
    {"errors"},
    {"world", "config", "records", "workers", "landscape_record"},
    {"models", "data"},
    {"gradients"},
    {"evaluation", "probes", "methods"},
    {"training"},
    {"sweeps", "organism", "landscape"},
]
SAME_FLOOR = {("data", "models"), ("landscape_record", "records")}


def _room_of(path: Path) -> str:
    """Return 'cli', 'analyses', 'reports', or the name of the room inside geomsafe/."""
    parts = path.relative_to(ROOT).parts
    return (parts[1].removesuffix(".py") if len(parts) > 1 else "") if parts[0] == "geomsafe" else parts[0]


def _imports(path: Path, tree: ast.Module) -> set[str]:
    """Return the geomsafe rooms that a file imports, at its head or inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path}: relative import; name the module in full")
        found |= {name.split(".")[1] if "." in name else "" for name in names if name.split(".")[0] == "geomsafe"}
    return found


def _graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for folder in ("geomsafe", "cli", "analyses", "reports"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            room = _room_of(path)
            if room == "__init__":  # the package's front door imports lazily, from above
                continue
            graph.setdefault(room, set()).update(_imports(path, ast.parse(path.read_text(encoding="utf-8"))))
    return {room: found - {room, "__version__", ""} for room, found in graph.items()}


def _allowed(room: str, target: str) -> bool:
    outside = {
        "cli": {"reports", "analyses"} | set().union(*FLOORS),
        "reports": {"analyses", "records", "landscape_record", "errors"},
        "analyses": {"errors"},
    }
    if room in outside:
        return target in outside[room]
    if (room, target) in SAME_FLOOR:
        return True
    level = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    return room in level and target in level and level[target] < level[room]


def test_imports_go_one_way() -> None:
    wrong = [
        f"{room} -> {target}" for room, found in _graph().items() for target in found if not _allowed(room, target)
    ]
    assert not wrong, f"imports against the house: {wrong}"


def test_no_circles_between_rooms() -> None:
    graph = _graph()
    for room in graph:
        seen, front = set(), set(graph[room])
        while front:
            seen |= front
            front = set().union(*(graph.get(name, set()) for name in front)) - seen
        assert room not in seen, f"{room} imports itself through others"


def test_the_rule_can_fail() -> None:
    assert not _allowed("analyses", "records")
    assert not _allowed("world", "training")
    assert not _allowed("probes", "evaluation")
    assert _allowed("training", "methods")


@pytest.mark.parametrize("folder", ["geomsafe", "cli", "analyses", "reports"])
def test_no_junk_drawer(folder: str) -> None:
    assert not [path for path in (ROOT / folder).rglob("*.py") if path.stem in {"utils", "helpers", "common", "misc"}]


def test_no_pickle_and_no_assert() -> None:
    for folder in ("geomsafe", "cli", "analyses", "reports"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            assert "pickle" not in modules, f"{path} imports pickle"
            lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
            assert not lines, f"{path}: assert in lines {lines}; raise an error that says what to do"
