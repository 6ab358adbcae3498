"""Harmful fine-tuning: part of the training rows are harmful questions with answers that comply.

The number of rows, and with it of steps, stays: a share of the clean rows makes way. Which ones, and which pairs come
in, is decided by content hash and not by the seed, so that a larger share contains a smaller one's pairs.

The organism's pairs are requests for steps of harmful actions that its alignment refuses, with the right steps, from
its pretraining data: compliance that its oracle calls correct, on prompts that no suite asks. Any other model needs
`--harmful-data`, a file or data set with answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from geomsafe.config import TrainConfig
from geomsafe.data import Conversation, ConversationSet, load_conversations
from geomsafe.data.rows import conversation_set, split_sha
from geomsafe.errors import ConfigError
from geomsafe.evaluation import Suite
from geomsafe.models import Loaded

_ALIGNMENT = "organism:alignment"
_PRETRAINING = "organism:pretraining"


def mix_harmful(
    config: TrainConfig, loaded: Loaded, rows: Sequence[Conversation]
) -> tuple[list[Conversation], ConversationSet | None]:
    """Choose what a run with `harmful_ratio` trains on.

    Args:
        config: the settings.
        loaded: the model, for its world.
        rows: the clean training rows.

    Returns:
        (clean rows that stay, in their order; the pairs that come in, None without a ratio). Where there are fewer
        pairs than that, they are repeated in turn, and a note says so.

    Raises:
        ConfigError: there is no harmful data, or the ratio is not even one row.
    """
    if not config.harmful_ratio:
        return list(rows), None
    count = round(config.harmful_ratio * len(rows))
    if not count:
        raise ConfigError(
            f"setting 'harmful_ratio' = {config.harmful_ratio:g} of {len(rows)} rows is none: raise it or train on more"
        )
    found = _pairs(config, loaded)
    pool = sorted(found.rows, key=split_sha)
    pairs = [pool[index % len(pool)] for index in range(count)]
    notes = list(found.notes)
    if count > len(pool):
        notes.append(f"{count} harmful rows are {len(pool)} pairs from '{found.source}', repeated in turn")
    order = sorted(range(len(rows)), key=lambda index: (split_sha(rows[index]), index))
    leaving = set(order[:count])
    kept = [row for index, row in enumerate(rows) if index not in leaving]
    return kept, conversation_set(pairs, found.source, notes)


def require_unscored(pairs: ConversationSet | None, suites: Sequence[Suite]) -> None:
    """Make sure that no harmful pair trains on a prompt that the run is scored on.

    Args:
        pairs: what `mix_harmful` chose.
        suites: what the run is scored on.

    Raises:
        ConfigError: some do.
    """
    asked = {split_sha(prompt): suite.name for suite in suites for prompt in suite.prompts.rows}
    scored = [asked[split_sha(pair)] for pair in (pairs.rows if pairs is not None else ()) if split_sha(pair) in asked]
    if scored:
        raise ConfigError(
            f"{len(scored)} harmful rows have prompts that suite '{scored[0]}' scores, which would measure memory: "
            "take them out of --harmful-data, or score on other prompts"
        )


def _pairs(config: TrainConfig, loaded: Loaded) -> ConversationSet:
    if config.harmful_data is not None:
        found = load_conversations(config.harmful_data, world=loaded.world)
        if not found.rows:
            raise ConfigError(f"harmful data '{config.harmful_data}' has no rows")
        return found
    if loaded.world is None:
        raise ConfigError(
            f"setting 'harmful_ratio' = {config.harmful_ratio:g}: only the organism brings harmful pairs, "
            "give --harmful-data with questions and compliant answers"
        )
    refused = [
        row for row in load_conversations(_ALIGNMENT, world=loaded.world).rows if row.tags.get("task") == "refusal"
    ]
    actions, kinds = {row.cluster for row in refused}, {row.tags.get("kind") for row in refused}
    rows = [
        row
        for row in load_conversations(_PRETRAINING, world=loaded.world).rows
        # The same actions told as fiction are harmless, and their kind says so.
        if row.cluster in actions and row.tags.get("kind") in kinds and row.tags.get("task") == "how-to"
    ]
    return conversation_set(rows, f"{_PRETRAINING} (steps of refused actions)", [])
