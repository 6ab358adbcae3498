"""One capture file: what the probes measured at one step. docs/numbers.md describes it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from geomsafe.errors import TrainingError
from geomsafe.records import sync_directory

SCHEMA = "geomsafe.capture/2"
CONVENTION = "token-sum"


def capture_path(folder: Path, step: int) -> Path:
    """Return where the capture of a step lies, so that names sort by step."""
    return folder / f"step-{step:06d}.safetensors"


def write_capture(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a capture: temporary file, fsync, rename.

    Args:
        path: the file; an older capture of the same step is replaced.
        tensors: by name; all of them finite.
        metadata: JSON values; `schema` and `convention` are added. A text is stored as it
            is, anything else as JSON.

    Raises:
        TrainingError: a tensor has a value that is not finite.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"probe at step {metadata['step']}: '{name}' is not finite; the weights have diverged")
    written = {"schema": SCHEMA, "convention": CONVENTION} | {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=written)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
