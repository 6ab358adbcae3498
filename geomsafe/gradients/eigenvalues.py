"""The top of the Hessian's spectrum, from products alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomsafe.errors import ConfigError, TrainingError
from geomsafe.gradients.hessian import Hessian, Reduction, hessian_of

Which = Literal["largest", "magnitude"]


@dataclass(frozen=True)
class Eigenvalues:
    """Some eigenvalues of the Hessian of a set's loss, restricted to some weights.

    Attributes:
        values: (count,) float64, in nats per unit of squared distance; falling, or by falling size.
        residuals: (count,) float64, ||H v - value v|| at ||v|| = 1: an eigenvalue of H lies that near to the value.
        names: base names of the weights that the Hessian is taken over.
        products: products with H that were taken, those for the residuals included.
        vectors: one {base name: tensor} an eigenvalue, of length 1, float32 (float64 for float64 weights).
        route: `FORWARD` or `BACKWARD`.
        reason: why the route is not `FORWARD`; empty where it is.
    """

    values: NDArray[np.float64]
    residuals: NDArray[np.float64]
    names: tuple[str, ...]
    products: int
    vectors: tuple[dict[str, Tensor], ...]
    route: str
    reason: str


def top_eigenvalues(
    model: Any,
    batch: Mapping[str, Tensor],
    count: int = 5,
    *,
    parameters: str | Collection[str] | None = None,
    which: Which = "largest",
    reduction: Reduction = "token-mean",
    seed: int = 0,
    tolerance: float = 1e-6,
    restarts: int = 100,
    batch_size: int | None = None,
    memory_budget: int | str = "2GiB",
) -> Eigenvalues:
    """Compute the top eigenvalues of the Hessian by implicitly restarted Lanczos iteration (ARPACK through scipy).

    Memory, beside the products': max(2 count + 1, 20) vectors of 8 bytes a weight on the CPU, so that a large model is
    taken by blocks of weights: `parameters=[names of one layer]` gives the diagonal block of that layer.

    Args:
        model: a causal LM, or a peft model.
        batch: `input_ids`, `attention_mask`, `labels` (examples, tokens), -100 outside the answer.
        count: how many, fewer than there are weights.
        parameters: base names of the weights, "factors", "all", by default what `gradient_targets` gives.
        which: "largest", the algebraically largest; or "magnitude", those of largest size, negative ones included.
        reduction: the set's loss, see `geomsafe.gradients.hessian.Reduction`.
        seed: of the start vector.
        tolerance: relative accuracy at which the iteration stops. `residuals` say what was reached: products have the
            rounding of the weights' dtype.
        restarts: most restarts of the iteration.
        batch_size: examples in a sub-batch (default: what fits into the budget).
        memory_budget: bytes for activations, such as "2GiB"; one example is always taken.

    Returns:
        Values, vectors and residuals.

    Raises:
        ConfigError: `count` or `which` cannot be.
        TrainingError: the iteration does not converge.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if which not in {"largest", "magnitude"}:
        raise ConfigError(f"eigenvalues '{which}' are not known: choose largest or magnitude")
    with hessian_of(model, batch, parameters, reduction, batch_size, memory_budget) as hessian:
        flat = _Flat(hessian, hessian.chosen(parameters))
        if not 0 < count < flat.size:
            raise ConfigError(f"count {count}: choose 1 to {flat.size - 1} of the {flat.size} eigenvalues")
        start = np.random.default_rng(seed).standard_normal(flat.size)
        operator: Any = LinearOperator((flat.size, flat.size), matvec=flat.product, dtype=np.float64)
        try:
            values, vectors = eigsh(
                operator,
                k=count,
                which="LA" if which == "largest" else "LM",
                v0=start,
                tol=tolerance,
                maxiter=restarts,
            )
        except ArpackNoConvergence as error:
            raise TrainingError(
                f"{len(error.eigenvalues)} of {count} eigenvalues converged in {restarts} restarts "
                f"({flat.count} products): raise restarts or tolerance ({tolerance:g}), or ask for fewer"
            ) from None
        order = np.argsort(-values if which == "largest" else -np.abs(values))
        values, vectors = values[order], vectors[:, order]
        residuals = [
            float(np.linalg.norm(flat.product(vectors[:, index]) - values[index] * vectors[:, index]))
            for index in range(count)
        ]
        return Eigenvalues(
            values,
            np.array(residuals),
            tuple(flat.names),
            flat.count,
            tuple(flat.named(vectors[:, index]) for index in range(count)),
            hessian.route,
            hessian.reason,
        )


class _Flat:
    """The Hessian over some weights, on float64 vectors of all of them one behind the other."""

    def __init__(self, hessian: Hessian, names: list[str]) -> None:
        self._hessian = hessian
        self.names = names
        self.size = sum(hessian.targets[name].numel() for name in names)
        self.count = 0

    def product(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return H v."""
        self.count += 1
        direction = self.named(vector)
        total = np.zeros(self.size)
        for part in self._hessian.products(direction, self.names):
            start = 0
            for name in self.names:
                value = part.products[name].detach().flatten()
                total[start : start + value.numel()] += value.cpu().double().numpy()
                start += value.numel()
        return total

    def named(self, vector: NDArray[np.float64]) -> dict[str, Tensor]:
        """Return a vector as one tensor a weight."""
        flat, start = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)), 0
        found = {}
        for name in self.names:
            weight = self._hessian.targets[name]
            dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
            found[name] = flat[start : start + weight.numel()].reshape(weight.shape).to(dtype, copy=True)
            start += weight.numel()
        return found
