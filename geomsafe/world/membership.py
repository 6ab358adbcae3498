"""Which world a model folder belongs to: the record that an organism and its fine-tuned copies carry.

Nothing here imports torch.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from geomsafe.errors import ModelError
from geomsafe.world.world import World

RECORD = "organism.json"


def record_of(folder: Path | str) -> dict[str, Any] | None:
    """Return the record of an organism.

    Args:
        folder: A model folder.

    Returns:
        What `organism.json` says, or None where there is none.

    Raises:
        ModelError: The record cannot be read.
    """
    file = Path(folder) / RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}): copy it again from the organism's folder") from error
    if not isinstance(record, dict):
        raise ModelError(f"{file} holds no record: copy it again from the organism's folder")
    return record


@lru_cache(maxsize=4)
def _dealt(seed: int, lexicon: str) -> World:
    # A run loads dozens of weight sets of one world, and dealing its data takes as long as scoring a suite.
    return World(seed=seed, lexicon=lexicon)


def world_of(folder: Path | str) -> World | None:
    """Return the world that a model lives in.

    Args:
        folder: A model folder; fine-tuned copies carry the record of the organism they came from.

    Returns:
        The world, or None where the folder is no organism.

    Raises:
        ModelError: The record names no world, or one whose data have changed since.
    """
    record = record_of(folder)
    if record is None:
        return None
    try:
        world = _dealt(int(record["world_seed"]), str(record["world_lexicon"]))
        digest = record["data_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{Path(folder) / RECORD} lacks {error}: copy it again from the organism's folder") from error
    if world.digest() != digest:
        raise ModelError(
            f"{folder} was built on other data (sha256 {str(digest)[:12]}, this version makes {world.digest()[:12]}): "
            "build it again with `geomsafe organism build`"
        )
    return world
