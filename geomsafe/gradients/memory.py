"""How much memory a forward pass keeps for its backward pass, and how much there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Measure what one forward pass keeps for its backward pass, the model's own tensors aside.

    Args:
        model: the model, in the mode that it will be used in.
        forward: runs it on some examples, with a graph.

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
        forward()
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Return the memory that a process can still have on a device.

    Args:
        device: a CUDA device, or any other for main memory.

    Returns:
        Bytes; of main memory, what the system can give without swapping, its own caches included.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return _unused_pages()


def _unused_pages() -> int:
    # What other systems say of main memory; 8 GiB where one says nothing.
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
