"""What a column of a table is."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """What a column means; `better` is "lower", "higher" or "" where neither is."""

    title: str
    unit: str
    better: str
    definition: str
