"""Which calls of a forward pass are understood, and what is made of the others.

A torch function mode sees every call. Linear maps (however they are written), embeddings,
layer norms and single experts of a fused weight have a rule; a measured weight that goes into
any other call is named in `uncovered`, and the pass takes the slow path for it: nothing is
missed silently.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm, linear, rms_norm
from torch.overrides import TorchFunctionMode

from geomsafe.gradients.watch import ROWS, Pending, Watch, tag_positions

_PRODUCTS = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}


class Watching(TorchFunctionMode):
    """Sees every torch call of the forward pass."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is not None:
            result = rule(self.watch, func, args, kwargs)
            if result is not None:
                return _tagged(result, args)
        result = func(*args, **kwargs)
        _note_uncovered(self.watch, result, args, kwargs)
        return _tagged(result, args)


def _linear(watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    read, weight, bias = _arguments(("input", "weight", "bias"), args, kwargs)
    name, index = _weight(watch, weight)
    return _matrix(watch, func, args, kwargs, read, (name, index, "linear"), bias)


def _product(watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) != 2 or kwargs:
        return None
    name, index = _weight(watch, args[1])
    return _matrix(watch, func, args, kwargs, args[0], (name, index, "product"), None)


def _addmm(watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) != 3 or kwargs:
        return None
    name, index = _weight(watch, args[2])
    return _matrix(watch, func, args, kwargs, args[1], (name, index, "product"), args[0])


def _matrix(
    watch: Watch,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    read: Tensor,
    use: tuple[str | None, int | None, str],
    bias: Tensor | None,
) -> Tensor | None:
    name, index, kind = use
    bias_name = watch.name(bias)
    if (name is None and bias_name is None) or watch.name(read) is not None:
        return None
    positions = watch.layout.positions(read)
    if positions is None:
        return None
    plain = 0 if hasattr(read, ROWS) else len(positions) // watch.layout.examples
    output = func(*args, **kwargs)
    return watch.see(output, read, Pending(name, bias_name, kind, positions, plain, index))


def _embedding(watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    order = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    ids, weight, padding, max_norm, _, by_frequency, _ = _arguments(order, args, kwargs)
    name = watch.name(weight)
    if name is None or max_norm is not None or by_frequency:
        return None
    if ids.dim() == 2 and ids.shape[0] == 1 and watch.layout.examples > 1:
        # Positions that all examples share: read once for each, or their gradients would be one sum.
        ids = ids.expand(watch.layout.examples, -1)
    probe = ids[..., None]
    positions = watch.layout.positions(probe)
    if positions is None:
        return None
    if padding is not None and padding < 0:
        padding += weight.shape[0]
    output = func(ids, weight)
    per_example = len(positions) // watch.layout.examples
    pending = Pending(name, None, "embedding", positions, per_example, size=weight.shape[0], skipped=padding)
    return watch.see(output, ids, pending)


def _layer_norm(watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    order = ("input", "normalized_shape", "weight", "bias", "eps")
    read, shape, weight, bias, epsilon = _arguments(order, args, kwargs)
    names = watch.name(weight), watch.name(bias)
    positions = watch.layout.positions(read)
    if names == (None, None) or positions is None or len(shape) != 1:
        return None
    output = func(*args, **kwargs)
    per_example = len(positions) // watch.layout.examples
    pending = Pending(*names, "layer_norm", positions, per_example, shape=tuple(shape), epsilon=epsilon)
    return watch.see(output, read, pending)


def _rms_norm(watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    read, shape, weight, epsilon = _arguments(("input", "normalized_shape", "weight", "eps"), args, kwargs)
    name = watch.name(weight)
    positions = watch.layout.positions(read)
    if name is None or positions is None or len(shape) != 1:
        return None
    output = func(*args, **kwargs)
    per_example = len(positions) // watch.layout.examples
    pending = Pending(name, None, "rms_norm", positions, per_example, shape=tuple(shape), epsilon=epsilon)
    return watch.see(output, read, pending)


def _selected(watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    source, dim, index = _arguments(("input", "dim", "index"), args, kwargs)
    return _rows(watch, func, args, kwargs, source, index) if dim == 0 and watch.name(source) is None else None


def _picked(watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    # tensor[index]: an expert of a fused weight, or rows of a layer's input sent to one expert.
    source, index = args
    name = watch.name(source)
    if name is not None:
        if not _is_number(index) or source.dim() != 3:
            return None
        part: Tensor = func(*args, **kwargs)
        watch.parts[id(part)] = (name, int(index), part)
        return part
    return _rows(watch, func, args, kwargs, source, index)


def _rows(
    watch: Watch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, index: Any
) -> Tensor | None:
    # Some rows of a flattened layer input: they remember the positions that they came from.
    if not isinstance(index, Tensor) or index.dim() != 1 or source.dim() != 2 or not source.is_floating_point():
        return None
    positions = watch.layout.positions(source)
    if positions is None:
        return None
    rows: Tensor = func(*args, **kwargs)
    return tag_positions(rows, positions[index])


_RULES: dict[Any, Callable[[Watch, Any, tuple[Any, ...], dict[str, Any]], Tensor | None]] = {
    linear: _linear,
    torch.addmm: _addmm,
    embedding: _embedding,
    layer_norm: _layer_norm,
    rms_norm: _rms_norm,
    torch.index_select: _selected,
    Tensor.index_select: _selected,
    Tensor.__getitem__: _picked,
    **dict.fromkeys(_PRODUCTS, _product),
}


def _weight(watch: Watch, tensor: Any) -> tuple[str | None, int | None]:
    if isinstance(tensor, Tensor) and id(tensor) in watch.parts:
        owner, index, _ = watch.parts[id(tensor)]
        return owner, index
    name = watch.name(tensor)
    return (name, None) if name is not None and tensor.dim() == 2 else (None, None)


def _is_number(index: Any) -> bool:
    return isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0 and not index.is_floating_point())


def _arguments(order: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    given = dict(zip(order, args, strict=False)) | kwargs
    return tuple(given.get(key) for key in order)


def _note_uncovered(watch: Watch, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # A call that takes a measured weight and gives a tensor is one that no rule covers.
    if not _holds_tensor(result):
        return
    for value in _flat((*args, *kwargs.values())):
        name: str | None = watch.name(value)
        if name is None and isinstance(value, Tensor) and id(value) in watch.parts:
            name = watch.parts[id(value)][0]
        if name is not None:
            watch.uncovered.add(name)


def _tagged(result: Any, args: tuple[Any, ...]) -> Any:
    # What is computed row by row from picked rows belongs to the same positions.
    if isinstance(result, Tensor) and not hasattr(result, ROWS):
        for value in args:
            tag = getattr(value, ROWS, None) if isinstance(value, Tensor) else None
            if tag is not None and result.dim() == value.dim() and result.shape[:-1] == value.shape[:-1]:
                tag_positions(result, tag)
                break
    elif isinstance(result, (tuple, list)) and args and hasattr(args[0], ROWS):
        for part in result:
            _tagged(part, args)
    return result


def _holds_tensor(result: Any) -> bool:
    return any(isinstance(value, Tensor) for value in _flat((result,)))


def _flat(values: Collection[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value
