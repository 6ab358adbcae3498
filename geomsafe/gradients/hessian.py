"""The Hessian of a set's loss as an operator: products with directions, in sub-batches that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from geomsafe.data.encoding import IGNORED
from geomsafe.errors import ConfigError, DataError, ModelError, TrainingError
from geomsafe.gradients.blocking import budget_of
from geomsafe.gradients.losses import token_losses
from geomsafe.gradients.memory import saved_bytes
from geomsafe.gradients.products import row_dots
from geomsafe.gradients.smooth import smooth_kernels
from geomsafe.gradients.targets import gradient_targets
from geomsafe.gradients.undisturbed import undisturbed

FORWARD = "forward over reverse"
BACKWARD = "double backward"

Reduction = Literal["token-mean", "mean", "sum"]
"""The set's loss: mean over all target tokens; mean over examples of each one's token mean; sum over tokens."""

# Peak memory of a product over what a forward pass saves; measured on the CPU, a Llama of 6 layers of width 256, 128
# tokens: 10.3 forward over reverse, 5.3 by double backward.
_SECOND_ORDER = 11


class Part(NamedTuple):
    """What one sub-batch adds to the gradient and to H u, by name."""

    gradients: dict[str, Tensor]
    products: dict[str, Tensor]


class _Loss(nn.Module):
    """A set's loss as a function of the model's weights, for `functional_call`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor], weights: Tensor) -> Tensor:
        losses = token_losses(self.model, batch).losses
        return (losses * weights.to(losses)).sum()


class Hessian:
    """The Hessian of one set's loss as an operator on directions; made by `hessian_of`, valid inside it.

    Attributes:
        targets: base name -> the parameter, in the model's order.
        route: `FORWARD` until an operation without forward rule is met, then `BACKWARD`.
        reason: what was met.
    """

    def __init__(
        self, model: Any, targets: dict[str, nn.Parameter], batch: Mapping[str, Tensor], weights: Tensor
    ) -> None:
        self.targets = targets
        self.route, self.reason = FORWARD, ""
        self._loss, self._batch, self._weights, self._size = _Loss(model), batch, weights, len(weights)
        places = {id(weight): place for place, weight in self._loss.named_parameters()}
        self._places = {name: places[id(weight)] for name, weight in targets.items()}

    def fitting(self, budget: int) -> int:
        """Return how many examples a sub-batch may have, from what one of them keeps in a forward pass."""
        leaves = self._leaves([*self.targets])
        one = saved_bytes(self._loss, lambda: self._at(self._placed(leaves), *self._part(0, 1)))
        return max(1, budget // max(1, _SECOND_ORDER * one))

    def take(self, route: str) -> None:
        """Choose the route.

        Raises:
            ConfigError: it is not known.
        """
        if route not in {FORWARD, BACKWARD}:
            raise ConfigError(f"route '{route}' is not known: choose '{FORWARD}' or '{BACKWARD}'")
        if route == BACKWARD:
            self.route, self.reason = BACKWARD, "asked for"

    def split(self, size: int) -> None:
        """Take `size` examples together."""
        self._size = size

    def chosen(self, names: str | Collection[str] | None) -> list[str]:
        """Return names in the model's order, default all.

        Raises:
            ModelError: a name is not among the targets, or none is given.
        """
        if names is None or isinstance(names, str):
            return [*self.targets]
        unknown = sorted(set(names) - set(self.targets))
        if unknown or not names:
            raise ModelError(
                f"parameters {unknown} are not among the {len(self.targets)} measured ones, e.g. '{[*self.targets][0]}'"
            )
        return [name for name in self.targets if name in set(names)]

    def checked(self, direction: Mapping[str, Tensor]) -> list[str]:
        """Return the direction's names in the model's order.

        Raises:
            ModelError: a name is unknown or a tensor has not its parameter's shape.
        """
        names = self.chosen(direction)
        for name in names:
            shape, given = tuple(self.targets[name].shape), tuple(direction[name].shape)
            if shape != given:
                raise ModelError(f"direction of '{name}' has shape {given}, its parameter {shape}: give one a weight")
        return names

    def products(self, direction: Mapping[str, Tensor], names: list[str]) -> Iterator[Part]:
        """Yield each sub-batch's share of gradient and H u, by `names`.

        Raises:
            TrainingError: a product is not finite.
        """
        # A product is linear in u: at length 1 the tangents of a small update do not underflow in half precision.
        length = math.sqrt(math.fsum(inner(value, value) for value in direction.values()))
        scale = length or 1.0
        tangents = {
            name: (direction[name].to(weight.device).to(wide(weight)) / scale).to(weight.dtype)
            if name in direction
            else torch.zeros_like(weight)
            for name, weight in ((name, self.targets[name].detach()) for name in names)
        }
        for start in range(0, len(self._weights), self._size):
            gradients, products = self._product(*self._part(start, self._size), tangents)
            if not all(bool(torch.isfinite(value).all()) for value in products.values()):
                raise TrainingError(
                    f"the Hessian product of the sub-batch at example {start} is not finite: the weights have "
                    "diverged, or their dtype is too narrow (load the model in float32)"
                )
            yield Part(gradients, {name: value.to(wide(value)) * scale for name, value in products.items()})

    def _product(self, batch: dict[str, Tensor], weights: Tensor, tangents: dict[str, Tensor]) -> Part:
        """Take the forward route, and the other once that has failed.

        Returns:
            The sub-batch's gradient and product.

        Raises:
            ModelError: the model cannot be differentiated twice.
        """  # noqa: DOC501
        if self.route == FORWARD:
            try:
                return self._forward_over_reverse(batch, weights, tangents)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # each library says in its own way that it has no forward rule
                self.route, self.reason = BACKWARD, _said(error)
        try:
            return self._double_backward(batch, weights, tangents)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"this model cannot be differentiated twice: {_said(error)} "
                f"(and forward mode fails with {self.reason}); curvature needs plain kernels"
            ) from None

    def _forward_over_reverse(self, batch: dict[str, Tensor], weights: Tensor, tangents: dict[str, Tensor]) -> Part:
        def loss(values: dict[str, Tensor]) -> Tensor:
            return self._at(self._placed(values), batch, weights)

        start = {name: self.targets[name].detach() for name in tangents}
        found: Any = torch.func.jvp(torch.func.grad(loss), (start,), (tangents,))
        return Part(*found)

    def _double_backward(self, batch: dict[str, Tensor], weights: Tensor, tangents: dict[str, Tensor]) -> Part:
        leaves = self._leaves([*tangents])
        values = self._placed(leaves)
        held = {
            place: nn.Parameter(weight.detach(), requires_grad=False)
            for place, weight in self._loss.named_parameters()
            if place not in values
        }
        loss = self._at(held | values, batch, weights)
        found = torch.autograd.grad(loss, [*leaves.values()], create_graph=True, materialize_grads=True)
        slope = torch.stack([(g * tangent).sum() for g, tangent in zip(found, tangents.values(), strict=True)]).sum()
        if slope.requires_grad:  # else the loss is linear in these weights
            # Not `autograd.grad`, which walks only to the leaves it is given and so passes by the node with which
            # torch marks an operation that has no second derivative: the product would be wrong without a word.
            torch.autograd.backward([slope])
        gradients = {name: gradient.detach() for name, gradient in zip(leaves, found, strict=True)}
        return Part(
            gradients,
            {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()},
        )

    def _leaves(self, names: list[str]) -> dict[str, nn.Parameter]:
        # Parameters and not plain tensors: peft's wrapper of fused experts registers what it finds as one.
        return {name: nn.Parameter(self.targets[name].detach()) for name in names}

    def _placed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self._places[name]: value for name, value in values.items()}

    def _part(self, start: int, size: int) -> tuple[dict[str, Tensor], Tensor]:
        rows = slice(start, start + size)
        return {key: value[rows] for key, value in self._batch.items()}, self._weights[rows]

    def _at(self, values: Mapping[str, Tensor], batch: dict[str, Tensor], weights: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(self._loss, dict(values), (batch, weights))
        return found


@contextmanager
def hessian_of(
    model: Any,
    batch: Mapping[str, Tensor],
    parameters: str | Collection[str] | None,
    reduction: Reduction,
    batch_size: int | None,
    memory_budget: int | str,
) -> Iterator[Hessian]:
    """Open the Hessian of a set's loss; the model is left as found when the body ends.

    Args:
        model: a causal LM, or a peft model.
        batch: `input_ids`, `attention_mask`, `labels` (examples, tokens), -100 outside the answer.
        parameters: which weights, see `gradient_targets`.
        reduction: the set's loss.
        batch_size: examples in a sub-batch (default: what fits into the budget).
        memory_budget: bytes for activations; one example is always taken.

    Yields:
        The operator.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} is below 1: leave it out, or give the examples of a sub-batch")
    budget = budget_of(memory_budget, next(model.parameters()).device)
    weights = _example_weights(batch, reduction)
    with gradient_targets(model, parameters) as targets, undisturbed(model), smooth_kernels(model), torch.enable_grad():
        hessian = Hessian(model, targets, batch, weights)
        hessian.split(batch_size or hessian.fitting(budget))
        yield hessian


def _example_weights(batch: Mapping[str, Tensor], reduction: Reduction) -> Tensor:
    """Return the factor of each example's token-summed loss in the set's loss.

    Raises:
        DataError: the set is empty, or an example has no target token.
        ConfigError: the reduction is not known.
    """
    tokens = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
    if not len(tokens):
        raise DataError("the set is empty: curvature needs at least one example")
    for row, count in enumerate(tokens.tolist()):
        if count == 0:
            raise DataError(f"example {row} has no target token: all of its labels are -100")
    if reduction == "token-mean":
        return torch.ones(len(tokens), dtype=torch.float64) / tokens.sum().item()
    if reduction == "mean":
        return 1 / (len(tokens) * tokens.double())
    if reduction == "sum":
        return torch.ones(len(tokens), dtype=torch.float64)
    raise ConfigError(f"reduction '{reduction}' is not known: choose token-mean, mean or sum")


def _said(error: Exception) -> str:
    """Return what an error says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def wide(weight: Tensor) -> torch.dtype:
    """Return the dtype that sums over sub-batches are kept in."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def inner(first: Tensor, second: Tensor) -> float:
    """Return the inner product of two tensors of one shape, summed in float64."""
    return float(row_dots(first.detach()[None], second.detach())[0])
