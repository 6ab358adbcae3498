"""Taking a direction out of the residual stream, or adding it: hooks, no weight is touched.

    ablation   x <- x - r r^T x   wherever something is written to the stream, in every layer and at every position
    addition   x <- x + scale r   before one block, at every position

(Arditi et al., arXiv 2406.11717, sections 2.4 and 4.1; |r| = 1.) Where attention and MLP are added as they are (Llama,
Qwen, Gemma 1, GPT-2), ablation gives the logits of a model whose embeddings and output matrices have been made
orthogonal to r. Gemma 2 and 3 pass them through a norm first; there the norm's output is made orthogonal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from geomsafe.errors import ModelError
from geomsafe.models.blocks import decoder_blocks, writers

Change = Callable[[Tensor], Tensor]


@contextmanager
def ablated(model: Any, direction: Tensor) -> Iterator[None]:
    """Take a direction out of everything that is written to the residual stream.

    Args:
        model: a causal LM.
        direction: (width,) r; its length plays no part.

    Yields:
        Nothing; the model computes without r inside the body, in generation too.

    Raises:
        ModelError: the direction is zero.
    """  # noqa: DOC502 - _unit raises it
    unit = _unit(direction)

    def change(stream: Tensor) -> Tensor:
        r = unit.to(stream)
        return stream - (stream @ r)[..., None] * r

    with ExitStack() as hooks:
        for block in decoder_blocks(model):
            hooks.callback(block.register_forward_pre_hook(_on_input(change), with_kwargs=True).remove)
            for part in writers(block):
                hooks.callback(part.register_forward_hook(_on_output(change)).remove)
        yield


@contextmanager
def added(model: Any, direction: Tensor, layer: int, scale: float = 1.0) -> Iterator[None]:
    """Add a direction to the residual stream before one block.

    Args:
        model: a causal LM.
        direction: (width,) what is added, as long as it is.
        layer: number of the block, from 0.
        scale: factor of the direction; negative to steer away from it.

    Yields:
        Nothing; the model computes with the direction added inside the body.

    Raises:
        ModelError: there is no such block.
    """
    blocks = decoder_blocks(model)
    if not 0 <= layer < len(blocks):
        raise ModelError(f"a direction cannot be added before block {layer}: the blocks are 0 to {len(blocks) - 1}")

    def change(stream: Tensor) -> Tensor:
        return stream + scale * direction.to(stream)

    handle = blocks[layer].register_forward_pre_hook(_on_input(change), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _unit(direction: Tensor) -> Tensor:
    wide = direction.detach().cpu().double()
    length = float(wide.norm())
    if not length > 0:
        raise ModelError("a direction of length zero cannot be taken out: it has no meaning at this layer and position")
    return wide / length


def _on_input(change: Change) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    return hook


def _on_output(change: Change) -> Callable[..., Any]:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    return hook
