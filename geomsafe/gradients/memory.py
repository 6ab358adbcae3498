"""How much memory a pass may take, and how much one takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geomsafe.errors import ConfigError
from geomsafe.gradients.losses import token_losses

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*")


def in_bytes(size: int | str) -> int:
    """Read a size such as "2GiB", "512 MiB" or a number of bytes.

    Args:
        size: bytes, or a number with B, KiB, MiB, GiB, kB, MB or GB behind it.

    Returns:
        Bytes, positive.

    Raises:
        ConfigError: it is not a size.
    """
    found = _SIZE.fullmatch(str(size))
    if found is None or found[2] not in _UNITS or int(float(found[1]) * _UNITS[found[2]]) < 1:
        raise ConfigError(f"memory budget '{size}' is not a size: write it like '2GiB' or '512MiB'")
    return int(float(found[1]) * _UNITS[found[2]])


def saved_bytes(model: Any, batch: Mapping[str, Tensor]) -> int:
    """Measure what one forward pass keeps for its backward pass, the model's own tensors aside.

    Args:
        model: a causal LM, in the mode that it will be used in.
        batch: `input_ids`, `attention_mask`, `labels` (examples, tokens).

    Returns:
        Bytes of distinct saved storages; grows linearly with the number of examples.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    # A storage freed during the pass could hand its address to another: what is kept stays alive until the end.
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_losses(model, batch)
    return sum(kept.values())
