"""Checks of a user's own model on a few of its rows, before hours are spent on it.

What is covered: two passes give the same numbers; rows of a batch do not see each other; the engine's inner products
equal those of plain autograd, row by row; a Hessian product is the same by both routes; which names share a weight.
Where a check fails, the module at which two passes first part is named.

What is not: whether the model is any good, and anything that only shows after many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomsafe.data.encoding import IGNORED
from geomsafe.errors import ModelError
from geomsafe.gradients.curvature import hessian_vector
from geomsafe.gradients.hessian import BACKWARD, FORWARD
from geomsafe.gradients.losses import token_losses
from geomsafe.gradients.products import row_dots
from geomsafe.gradients.targets import gradient_targets, target_shapes
from geomsafe.gradients.undisturbed import undisturbed
from geomsafe.models import base_parameter_name

Batch = Mapping[str, Tensor]
Status = Literal["ok", "warning", "failed"]

# Largest relative error that rounding explains, in logits and gradients, over a handful of rows of a deep model.
ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}

# A weight whose gradient is this small beside the model's is rounding itself: key biases have gradient zero exactly.
_NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: what was checked.
        status: "ok", "warning" (works, with a caveat) or "failed" (numbers would be wrong).
        detail: what was seen, on one line.
    """

    name: str
    status: Status
    detail: str


def check_determinism(model: Any, batch: Batch) -> Finding:
    """Take losses and gradients of the same rows twice and compare them bit by bit.

    Args:
        model: a causal LM, or a peft model; left as found.
        batch: a few rows.

    Returns:
        The finding: differences below rounding are a warning.
    """
    # One random stream over both passes: put back between them, it would hide what draws from it.
    with _measuring(model):
        first, again = _gradients(model, batch), _gradients(model, batch)
        if all(torch.equal(first[name], again[name]) for name in first):
            return Finding("determinism", "ok", f"two passes over {_rows(batch)} rows are bitwise equal")
        apart = max(_error(again[name], first[name]) for name in first)
        said = f"two passes over the same {_rows(batch)} rows differ by {apart:.1e}"
        if apart <= rounding(model):
            return Finding("determinism", "warning", f"{said}, as sums without fixed order do: runs will not repeat")
        where = _parting(model, batch, batch)
    return Finding("determinism", "failed", f"{said}: something draws random numbers in eval mode, {where}")


def check_rows_apart(model: Any, batch: Batch) -> Finding:
    """Compare each row's logits within the batch with its logits alone, without padding.

    Args:
        model: a causal LM, or a peft model; left as found.
        batch: a few rows, padded on the right.

    Returns:
        The finding. Rows that see each other have no gradients of their own, and padding that is seen changes them.
    """
    if _rows(batch) < 2:
        return Finding("rows apart", "warning", "not checked: the data has one row")
    with _measuring(model), torch.no_grad():
        together = _logits(model, batch)
        alone = [_logits(model, _row(batch, row))[0] for row in range(_rows(batch))]
        apart = max(_error(found, wanted) for found, wanted in zip(together, alone, strict=True))
        said = f"logits of {_rows(batch)} rows in a padded batch and alone differ by {apart:.1e}"
        if apart <= rounding(model):
            return Finding("rows apart", "ok", said)
        others = {key: value.clone() for key, value in batch.items()}
        others["input_ids"][1:] = others["input_ids"][1:].roll(1, dims=1)
        where = _parting(model, batch, others, row=0)
    return Finding("rows apart", "failed", f"{said}: rows of a batch see each other or their padding, {where}")


def check_engine(
    model: Any, batch: Batch, gram: Mapping[str, Tensor], progress: Callable[[], None] | None = None
) -> Finding:
    """Compare the engine's inner products with those of one plain backward pass a row, alone and without padding.

    Takes n (n + 1) / 2 backward passes over n rows and holds two gradients, so that a large model can be checked.

    Args:
        model: a causal LM, or a peft model; left as found.
        batch: a few rows.
        gram: `gradient_gram(model, batch, reduction="sum")`.
        progress: called after each backward pass.

    Returns:
        The finding, with the weight that is furthest off.
    """
    missing = sorted(set(target_shapes(model)) ^ set(gram))
    if missing:
        return Finding("engine", "failed", f"engine and autograd differ in which weights they see: '{missing[0]}'")
    error, worst = gram_error(model, batch, gram, progress)
    said = f"inner products of {_rows(batch)} rows in {len(gram)} weights differ by {error:.1e} at most"
    # A relative error of e in both gradients is one of 2 e in their product.
    if error <= 2 * rounding(model):
        return Finding("engine", "ok", f"{said} from plain autograd")
    return Finding("engine", "failed", f"{said}, in '{worst}', from those of plain autograd row by row")


def gram_error(
    model: Any, batch: Batch, gram: Mapping[str, Tensor], progress: Callable[[], None] | None = None
) -> tuple[float, str]:
    """Compare inner products with those of plain autograd, one backward pass a row.

    Args:
        model: a causal LM, or a peft model; left as found.
        batch: a few rows.
        gram: `gradient_gram(model, batch, reduction="sum")`, of all weights or of some.
        progress: called after each backward pass.

    Returns:
        The largest error of any weight, relative to its largest squared norm, and that weight's name.
    """
    wanted = plain_gram(model, batch, list(gram), progress)
    whole = torch.stack(list(wanted.values())).sum(dim=0).diagonal().max()
    errors = {
        name: float((gram[name] - value).abs().max() / value.diagonal().max().clamp(min=_NEGLIGIBLE**2 * whole))
        for name, value in wanted.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


def plain_gram(
    model: Any,
    batch: Batch,
    parameters: Collection[str] | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """Inner products of token-summed gradients by one backward pass a row, never batched and never padded.

    Args:
        model: a causal LM, or a peft model; left as found.
        batch: a few rows.
        parameters: which weights, see `gradient_targets`.
        progress: called after each backward pass.

    Returns:
        Base name -> (examples, examples) float64.
    """
    rows = _rows(batch)
    found: dict[str, Tensor] = {}
    with _measuring(model):
        for i in range(rows):
            first = _gradients(model, _row(batch, i), parameters)
            for j in range(i, rows):
                second = _gradients(model, _row(batch, j), parameters) if j > i else first
                for name in first:
                    gram = found.setdefault(name, torch.zeros((rows, rows), dtype=torch.float64))
                    gram[i, j] = gram[j, i] = row_dots(first[name][None], second[name])[0]
                if progress is not None:
                    progress()
    return found


def batch_gradients(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Take the gradient of the token-summed loss of some rows, by plain autograd.

    Args:
        model: a causal LM, or a peft model; left as found.
        batch: some rows.

    Returns:
        Base name -> gradient, in the weight's shape and dtype.
    """
    with _measuring(model):
        return _gradients(model, batch)


def _gradients(model: Any, batch: Batch, parameters: Collection[str] | None = None) -> dict[str, Tensor]:
    with gradient_targets(model, parameters) as targets:
        loss = token_losses(model, batch).losses.sum()
        found = torch.autograd.grad(loss, [*targets.values()], materialize_grads=True, allow_unused=True)
        return dict(zip(targets, found, strict=True))


def check_curvature(model: Any, batch: Batch) -> Finding:
    """Take one Hessian product by both routes, over one weight and the first row.

    Forward mode runs an operation's own forward rule and derives its backward pass; double backward only the latter.
    What a backward pass hides from both, by `detach()`, is not seen here.

    Args:
        model: a causal LM, or a peft model; left as found.
        batch: a few rows; the first is used.

    Returns:
        The finding: never failed, since nothing but curvature depends on it. The weight is the first matrix behind
        the embedding, below everything that a backward pass goes through.
    """
    row = _row(batch, 0)
    shapes = target_shapes(model)
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    name = (matrices[1:] or matrices or [*shapes])[0]
    generator = torch.Generator().manual_seed(0)
    direction = {name: torch.randn(shapes[name], generator=generator)}
    try:
        found = hessian_vector(model, row, direction, parameters=[name])
        again = hessian_vector(model, row, direction, parameters=[name], route=BACKWARD)
    except ModelError as error:
        return Finding("curvature", "warning", str(error))
    if found.route == BACKWARD:
        return Finding("curvature", "warning", f"by {BACKWARD}, since forward mode fails with {found.reason}")
    apart = _error(found[name], again[name])
    said = f"products by {FORWARD} and by {BACKWARD} differ by {apart:.1e} in '{name}'"
    if apart <= 10 * rounding(model):
        return Finding("curvature", "ok", said)
    return Finding(
        "curvature", "warning", f"{said}: an operation has a wrong second derivative, or the dtype is narrow"
    )


def check_ties(model: nn.Module) -> Finding:
    """List the names that share one weight, and find weights that share memory without being one.

    Args:
        model: any model.

    Returns:
        The finding.
    """
    names: dict[int, list[str]] = {}
    memory: dict[tuple[int, int], dict[int, str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(base_parameter_name(name))
        if weight.numel():
            place = (weight.untyped_storage().data_ptr(), int(weight.storage_offset()))
            memory.setdefault(place, {})[id(weight)] = base_parameter_name(name)
    doubled = [list(found.values()) for found in memory.values() if len(found) > 1]
    if doubled:
        return Finding(
            "tied weights",
            "failed",
            f"'{doubled[0][0]}' and '{doubled[0][1]}' share memory without being one parameter: their gradients would "
            "not be added up; tie the parameters (model.tie_weights())",
        )
    tied = [" = ".join(found) for found in names.values() if len(found) > 1]
    return Finding("tied weights", "ok", "; ".join(tied) or "none")


def rounding(model: nn.Module) -> float:
    """Return the largest relative error that the dtype's rounding explains, in logits and gradients."""
    return ROUNDING.get(next(model.parameters()).dtype, ROUNDING[torch.bfloat16])


@contextmanager
def _measuring(model: Any) -> Iterator[None]:
    with undisturbed(model), torch.enable_grad():
        yield


def _rows(batch: Batch) -> int:
    return len(batch["input_ids"])


def _row(batch: Batch, row: int) -> dict[str, Tensor]:
    kept = batch["attention_mask"][row].bool()
    return {key: value[row : row + 1][:, kept] for key, value in batch.items()}


def _logits(model: Any, batch: Batch) -> list[Tensor]:
    """Return what each row's answer is predicted from, (targets, vocabulary), less the mean that no softmax sees."""
    device = next(model.parameters()).device
    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    chosen = batch["labels"][:, 1:].to(device) != IGNORED
    rows = [row[targets].float() for row, targets in zip(logits, chosen, strict=True)]
    return [row - row.mean(dim=1, keepdim=True) for row in rows]


def _error(found: Tensor, wanted: Tensor) -> float:
    scale = float(wanted.float().norm())
    return float((found.float() - wanted.float()).norm()) / scale if scale else float(bool(found.any()))


def _parting(model: nn.Module, first: Batch, second: Batch, row: int | None = None) -> str:
    """Name the first module whose output differs between two passes, in the order in which modules finish.

    Returns:
        The end of a sentence.
    """
    with torch.no_grad():
        ours, theirs = _outputs(model, first, row), _outputs(model, second, row)
    for (name, kind, one), (_, _, other) in zip(ours, theirs, strict=False):
        if one.shape == other.shape and _error(other, one) > rounding(model):
            return f"first seen at the output of '{name}' ({kind})"
    return "in no single module's output"


def _outputs(model: nn.Module, batch: Batch, row: int | None) -> list[tuple[str, str, Tensor]]:
    found: list[tuple[str, str, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and len(tensor) == _rows(batch):
                found.append((name, type(module).__name__, (tensor if row is None else tensor[row]).cpu()))

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    try:
        token_losses(model, batch)
    finally:
        for handle in hooks:
            handle.remove()
    return found
