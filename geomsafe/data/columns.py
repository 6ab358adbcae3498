"""Recognising what the columns of a data set mean, by their names.

A layout says where the user's turn, the answer and the rest stand. The published formats are listed in
`PAIRS` and `PROMPTS`; names match whatever their case. A benchmark's `target` ("Sure, here is ...") is what an attack
wants the model to say: no layout reads it, as an answer or as a reference. It is kept apart, for attacks alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from geomsafe.config import ColumnMap
from geomsafe.data.files import Table
from geomsafe.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Which column holds what; None where there is none.

    Attributes:
        prompt: the user's turn.
        response: the assistant's turn.
        extra: context, appended to the prompt.
        system: the system turn.
        messages: a list of turns, instead of prompt and response.
        reference: the right answer, where it is not the response.
        context_first: the context comes before the prompt, as HarmBench has it.
        user_only: the messages are the user's turns of one dialogue, without answers.
    """

    prompt: str | None = None
    response: str | None = None
    extra: str | None = None
    system: str | None = None
    messages: str | None = None
    reference: str | None = None
    context_first: bool = False
    user_only: bool = False

    def columns(self) -> list[str]:
        """Return the columns that the layout reads."""
        named = (self.messages, self.system, self.prompt, self.extra, self.response, self.reference)
        return [name for name in named if name is not None]


# With an answer. More particular ones first: Alpaca's and Dolly's `instruction` differ by what stands beside it.
PAIRS = (
    Layout(prompt="instruction", extra="input", response="output"),  # Alpaca
    Layout(prompt="instruction", extra="context", response="response"),  # Dolly
    Layout(prompt="question", system="system_prompt", response="response"),  # OpenOrca
    Layout(prompt="question", response="answer"),  # GSM8K
    Layout(prompt="instruction", response="output"),  # WizardLM, first version
    Layout(prompt="instruction", response="response"),
    Layout(prompt="question", response="response"),
    Layout(prompt="prompt", response="response"),
    Layout(prompt="prompt", response="completion"),
    Layout(prompt="input", response="output"),
    Layout(prompt="user", response="assistant"),
)

# Prompts alone.
PROMPTS = (
    Layout(prompt="goal"),  # AdvBench, JailbreakBench
    Layout(prompt="behavior", extra="contextstring", context_first=True),  # HarmBench
    Layout(prompt="behavior"),
    Layout(prompt="forbidden_prompt"),  # StrongREJECT
    Layout(prompt="prompt", extra="context", context_first=True),  # HarmBench's contextual behaviours on the hub
    Layout(prompt="prompt"),  # XSTest, and most benchmarks on the hub
    Layout(messages="turns", reference="reference", user_only=True),  # MT-Bench
    Layout(messages="turns", user_only=True),
    Layout(prompt="instruction"),  # WizardLM's test set
    Layout(prompt="question"),
    Layout(prompt="text"),
)

MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
SYSTEM_COLUMNS = ("system", "system_prompt")
CLUSTER_COLUMNS = ("cluster", "cluster_id")
TARGET_COLUMNS = ("target",)

# Columns kept beside a row, under the name that the analyses use.
TAG_COLUMNS = {
    "category": "category",
    "semanticcategory": "category",
    "functionalcategory": "function",
    "type": "type",
    "label": "label",
    "kind": "kind",
    "level": "level",
    "task": "task",
    "skill": "category",
    "difficulty": "difficulty",
    "source": "source",
    "focus": "focus",
}


def find_layout(table: Table, columns: ColumnMap, *, answers: bool) -> Layout:
    """Decide what the columns of a table mean.

    Args:
        table: the rows.
        columns: what the user said about them; wins over recognition.
        answers: whether an answer is needed, as for training.

    Returns:
        The layout, with the column names as the table writes them.

    Raises:
        DataError: a mapped column is not there, or no known columns are.
    """
    if any((columns.prompt, columns.response, columns.messages)):
        layout = _mapped_layout(table, columns)
    else:
        layout = _recognised_layout(table, columns)
    if answers and (layout.user_only or (layout.messages is None and layout.response is None)):
        raise DataError(
            f"{table.title} has prompts but no answers to train on (columns: {_names(table)}): "
            "give a file with answers, or name their column with --columns response=NAME"
        )
    return layout


def actual_name(table: Table, wanted: str) -> str | None:
    """Return the table's column called `wanted` whatever its case, or None."""
    if wanted in table.columns:
        return wanted
    return next((name for name in table.columns if name.lower() == wanted.lower()), None)


def tag_columns(table: Table, columns: ColumnMap) -> dict[str, str]:
    """Return column -> tag of what is kept beside each row."""
    found = {name: TAG_COLUMNS[name.lower()] for name in table.columns if name.lower() in TAG_COLUMNS}
    if columns.category is not None:
        found[_required(table, columns.category, "category")] = "category"
    return found


def _mapped_layout(table: Table, columns: ColumnMap) -> Layout:
    if columns.messages is not None:
        return Layout(messages=_required(table, columns.messages, "messages"), system=_system(table, columns))
    if columns.prompt is None:
        raise DataError(
            f"{table.title}: the response column is '{columns.response}', but which one is the prompt? "
            "Name it with --columns prompt=NAME"
        )
    return Layout(
        prompt=_required(table, columns.prompt, "prompt"),
        response=_optional(table, columns.response, "response"),
        extra=_optional(table, columns.input, "input"),
        system=_system(table, columns),
    )


def _recognised_layout(table: Table, columns: ColumnMap) -> Layout:
    for name in MESSAGE_COLUMNS:
        if found := actual_name(table, name):
            return Layout(messages=found, system=_system(table, columns))
    if (given := actual_name(table, "input")) and (preferred := actual_name(table, "preferred_output")):
        return Layout(messages=given, response=preferred)
    for layout in (*PAIRS, *PROMPTS):
        actual = {name: actual_name(table, name) for name in layout.columns()}
        if all(actual.values()):
            return Layout(
                prompt=actual.get(layout.prompt or ""),
                response=actual.get(layout.response or ""),
                extra=_optional(table, columns.input, "input") or actual.get(layout.extra or ""),
                system=_system(table, columns),
                messages=actual.get(layout.messages or ""),
                reference=actual.get(layout.reference or ""),
                context_first=layout.context_first,
                user_only=layout.user_only,
            )
    raise DataError(
        f"{table.title} has no columns that geomsafe knows (columns: {_names(table)}): "
        "name yours with --columns prompt=NAME,response=NAME"
    )


def _system(table: Table, columns: ColumnMap) -> str | None:
    if columns.system is not None:
        return _required(table, columns.system, "system")
    return next((found for name in SYSTEM_COLUMNS if (found := actual_name(table, name))), None)


def _optional(table: Table, name: str | None, use: str) -> str | None:
    return None if name is None else _required(table, name, use)


def _required(table: Table, name: str, use: str) -> str:
    if name not in table.columns:
        raise DataError(f"{table.title} has no column '{name}' for the {use}: it has {_names(table)}")
    return name


def _names(table: Table) -> str:
    shown = ", ".join(table.columns[:8])
    return shown if len(table.columns) <= 8 else f"{shown}, ..."
