"""Prompt sets: what models are probed with and scored on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from geomsafe.config import ColumnMap
from geomsafe.data.columns import CLUSTER_COLUMNS, TARGET_COLUMNS, Layout, actual_name, find_layout, tag_columns
from geomsafe.data.conversations import user_turn
from geomsafe.data.files import Row, Table
from geomsafe.data.near import near_duplicates
from geomsafe.data.rows import Prompt, PromptSet, as_text, prompt_id, prompt_set
from geomsafe.data.sources import open_table, parse_source
from geomsafe.data.turns import cell_text, read_turns
from geomsafe.errors import DataError
from geomsafe.world import World

# GSM8K ends an answer with "#### 1,234"; only the number is compared.
_FINAL_NUMBER = re.compile(r"####\s*\$?(-?[\d.,]*\d)\s*$")

MOST_CLUSTERED = 5000
"""Prompts, at most, among which near-duplicates are looked for: more would make loading slow."""


def load_prompts(
    source: str, columns: ColumnMap | None = None, limit: int | None = None, world: World | None = None
) -> PromptSet:
    """Load prompts.

    Where the source names no clusters and has no answers, as benchmarks of prompts have none, near-duplicates among
    the prompts that are loaded make a cluster (`geomsafe.data.near`); `MOST_CLUSTERED` prompts at most.

    Args:
        source: a file, a named set (`advbench`), a hub id or `organism:<rows>`; with `:label` after it only the
            rows of that label, as in `xstest:safe` or `xstest_prompts.csv:unsafe`.
        columns: what the columns mean, where they are not recognised.
        limit: use only the first rows (of that label).
        world: the organism's world, for its data sets.

    Returns:
        The prompts with hash and notes.

    Raises:
        DataError: the source cannot be read, has no row of the label, or a row is broken; names file, row and column.
    """
    columns = columns or ColumnMap()
    name, label = parse_source(source)
    table = open_table(name, limit if label is None else None, world)
    layout = find_layout(table, columns, answers=False)
    tags = tag_columns(table, columns)
    cluster_column = _first_of(table, CLUSTER_COLUMNS)
    target_column = _first_of(table, TARGET_COLUMNS)
    has_contrasts = any(str(row.values.get("type", "")).startswith("contrast") for row in table.rows)

    rows: list[Prompt] = []
    labels: set[str] = set()
    for row in table.rows:
        kept = {tag: text for column, tag in tags.items() if (text := as_text(row.values.get(column))) is not None}
        if has_contrasts and "label" not in kept:
            # XSTest's older file has no label column; its unsafe prompts are the contrasts.
            kept["label"] = "unsafe" if kept.get("type", "").startswith("contrast") else "safe"
        labels.add(kept.get("label", ""))
        if label is not None and kept.get("label") != label:
            continue
        text, system, reference = _prompt(table, row, layout)
        _check_writable(table, row, [text, system])
        identity = prompt_id(text, system)
        cluster = as_text(row.values.get(cluster_column)) if cluster_column else None
        wanted = as_text(row.values.get(target_column)) if target_column else None
        _check_writable(table, row, [reference, wanted, cluster, *kept.values()])
        rows.append(Prompt(identity, text, system, reference, cluster or identity, kept, wanted or None))
        if len(rows) == limit:
            break
    if not rows:
        known = ", ".join(sorted(labels - {""})) or "none"
        raise DataError(f"data set '{name}' has no prompts with label '{label}': its labels are {known}")
    notes = [*table.notes, f"columns read: {', '.join(layout.columns())}"]
    if cluster_column is None and layout.response is None and (layout.messages is None or layout.user_only):
        rows, said = _clustered(rows)
        notes += said
    return prompt_set(rows, source, notes)


def _first_of(table: Table, names: Sequence[str]) -> str | None:
    return next((found for name in names if (found := actual_name(table, name))), None)


def _clustered(rows: list[Prompt]) -> tuple[list[Prompt], list[str]]:
    """Return the prompts, near-duplicates in one cluster, and what is to be said about it."""
    if len(rows) > MOST_CLUSTERED:
        return rows, [f"every prompt is its own cluster: near-duplicates are sought among {MOST_CLUSTERED} at most"]
    found = near_duplicates([row.text for row in rows])
    sizes = Counter(found.clusters)
    if len(sizes) == len(rows):
        return rows, []
    note = f"{found.near_share:.0%} of prompts have a near neighbour: {len(sizes)} clusters of {len(rows)} prompts"
    # A prompt alone keeps its id, in which its system turn has a part.
    return [
        replace(row, cluster=name) if sizes[name] > 1 else row for row, name in zip(rows, found.clusters, strict=True)
    ], [note]


def _check_writable(table: Table, row: Row, texts: Sequence[str | None]) -> None:
    """Refuse text that no UTF-8 file can hold, before hours of work are to be written beside it.

    Raises:
        DataError: a text has half of a surrogate pair, as JSON can give one.
    """
    for text in texts:
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{table.title} {row.place}: character {error.start + 1} of {text!a:.60} is half of a surrogate pair: "
                "repair the file's encoding"
            ) from None


def _prompt(table: Table, row: Row, layout: Layout) -> tuple[str, str | None, str | None]:
    """Return text, system turn and reference of a row; of a dialogue, those of its first exchange.

    Raises:
        DataError: there is no user turn.
    """
    system = as_text(row.values.get(layout.system)) if layout.system else None
    if layout.messages is None:
        reference = cell_text(table, row, layout.response) if layout.response else None
        return user_turn(table, row, layout), system or None, _final(reference)
    turns = read_turns(table, row, layout.messages)
    first = next((index for index, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None or not turns[first]["content"].strip():
        raise DataError(f"{table.title} {row.place}: column '{layout.messages}' has no user turn")
    system = next((turn["content"] for turn in turns[:first] if turn["role"] == "system"), system)
    following = turns[first + 1 : first + 2]
    reference = following[0]["content"] if following and following[0]["role"] == "assistant" else None
    if layout.reference is not None and isinstance(row.values.get(layout.reference), list):
        given = row.values[layout.reference]
        reference = as_text(given[0]) if given else None
    if reference is None and layout.response is not None:
        reference = _preferred_text(table, row, layout.response)
    return turns[first]["content"], system or None, _final(reference)


def _preferred_text(table: Table, row: Row, column: str) -> str | None:
    if isinstance(row.values.get(column), str):
        return cell_text(table, row, column)
    return read_turns(table, row, column)[-1]["content"]


def _final(reference: str | None) -> str | None:
    """Return the reference as answers are compared with it: of a worked GSM8K answer, the final number."""
    found = _FINAL_NUMBER.search(reference) if reference else None
    return found[1].replace(",", "") if found else reference
