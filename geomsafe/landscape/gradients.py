"""Directions made of gradients at theta_0, as {weight: tensor}: of the safety loss, of the task, and where they meet.

The safety loss is the negative log-likelihood of theta_0's own refusals of the run's safety probes, the utility loss
that of its utility probes, both means over all target tokens: what the run's captures measure. Utility directions go
downhill, as training does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomsafe.config import TrainConfig
from geomsafe.data import Encoded, encode_all, load_conversations
from geomsafe.errors import ConfigError
from geomsafe.gradients import Basis, Sum, gradient_gram, gradient_pass
from geomsafe.gradients.curvature import curvature_along
from geomsafe.gradients.eigenvalues import top_eigenvalues
from geomsafe.methods.origin import wide
from geomsafe.methods.projection import matrices, without
from geomsafe.models import Loaded
from geomsafe.probes.examples import Example, padded
from geomsafe.training.drift import measured_refusals
from geomsafe.training.prepare import ORGANISM_UTILITY

Batch = dict[str, Tensor]
Vector = dict[str, Tensor]


def safety_batch(start: Loaded, config: TrainConfig, folder: Path) -> Batch:
    """Return theta_0's refusals of the run's safety probes as one padded batch.

    Args:
        start: theta_0.
        config: the settings of the run.
        folder: where refusals lie or are kept: the run directory, or the landscape's own.

    Raises:
        ConfigError: theta_0 was asked no harmful prompts, or refuses too few.
    """  # noqa: DOC201
    found = measured_refusals(start, config, folder)
    if found is None:
        raise ConfigError(
            f"'{start.source}' refuses too few harmful prompts, or none were given, so that there is no safety loss: "
            "leave out safety-gradient, conflict and hessian"
        )
    return _batch(found.rows, start)


def utility_batch(start: Loaded, config: TrainConfig) -> Batch:
    """Return the first conversations of the run's utility probes, else of its training data, as one padded batch.

    Args:
        start: theta_0.
        config: the settings of the run.

    Raises:
        ConfigError: there are none.
    """  # noqa: DOC201
    source = config.utility_data or (ORGANISM_UTILITY if start.world is not None else config.data)
    if source is None:
        raise ConfigError("the run has no utility data: leave out utility-gradient and conflict")
    found = load_conversations(source, columns=config.columns, limit=config.probe_examples, world=start.world)
    rows: list[Encoded] = encode_all(found, start.tokenizer, config.max_length, config.system_prompt).rows
    return _batch(rows, start)


def _batch(rows: Sequence[Example], start: Loaded) -> Batch:
    return padded(rows, start.tokenizer.pad_token_id or 0)


def mean_gradient(model: Any, batch: Batch) -> Vector:
    """Return the gradient of a set's loss, the mean over its target tokens, by weight."""
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    found: Vector = gradient_pass(model, batch, {"sum": Sum()}, reduction="sum", parameters="all")["sum"]
    return {name: part / tokens for name, part in found.items()}


def span_direction(model: Any, batch: Batch, component: int) -> tuple[Vector, dict[str, Any]]:
    """Compute a singular direction of the span of the examples' gradients, uncentred.

    With K = V diag(s^2) V^T the Gram matrix of token-mean example gradients, the direction sum_i v_ik G_i is s_k times
    the k-th right singular vector; one backward pass of a weighted loss. Its sign is that of the mean gradient.

    Args:
        model: at theta_0.
        batch: the examples.
        component: k, from 1.

    Returns:
        The direction, and its share of the squared singular values.

    Raises:
        ConfigError: there are not so many examples.
    """
    gram = gradient_gram(model, batch, parameters="all").total().double().cpu().numpy()
    if component > len(gram):
        raise ConfigError(f"component={component}: the span of {len(gram)} examples has no more directions than that")
    values, vectors = np.linalg.eigh(gram)
    weights = vectors[:, -component] * math.copysign(1.0, float(vectors[:, -component] @ gram.sum(axis=1)))
    tokens = (batch["labels"][:, 1:] != -100).sum(dim=1)
    scaled = Sum(weights=torch.from_numpy(weights) / tokens.double())
    found: Vector = gradient_pass(model, batch, {"sum": scaled}, reduction="sum", parameters="all")["sum"]
    return found, {"share_of_energy": float(values[-component] / values.sum())}


def cut(gradient: Mapping[str, Tensor], rank: int) -> Vector:
    """Return the top singular part of each weight matrix, sum_{i <= rank} s_i u_i v_i^T; vectors stay whole."""
    found = {}
    for name, tensor in gradient.items():
        found[name] = _joined(tensor, [_low_rank(matrix, rank) for _, matrix in matrices(tensor)])
    return found


def _low_rank(matrix: Tensor, rank: int) -> Tensor:
    if min(matrix.shape) == 1:
        return matrix
    left, values, right = torch.linalg.svd(wide(matrix), full_matrices=False)
    found: Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
    return found


def conflict_direction(model: Any, safety: Batch, utility: Batch, rank: int) -> tuple[Vector, dict[str, Any]]:
    """Compute what SPF (arXiv 2601.10141, Algorithm 1) takes out of the utility descent direction.

    d = -U U^T G_u weight by weight, U the top left singular vectors of the safety gradient G_s; a vector's U is
    G_s / ||G_s||. SPF does so only where <G_u, G_s> < 0; the facts say whether that is so here.

    Args:
        model: at theta_0.
        safety: the refusals.
        utility: the task.
        rank: columns of U.

    Returns:
        The direction; facts: the dot product, and the share of ||G_u||^2 that is taken out.
    """
    bases = gradient_pass(model, safety, {"basis": Basis(rank)}, reduction="sum", parameters="all")["basis"]
    toward, task = mean_gradient(model, safety), mean_gradient(model, utility)
    found: Vector = {}
    removed = whole = dot = 0.0
    for name, gradient in task.items():
        dot += float((wide(gradient) * wide(toward[name])).sum())
        whole += float(wide(gradient).square().sum())
        parts = []
        for index, matrix in matrices(wide(gradient)):
            key = name if index is None else f"{name}[{index}]"
            if key in bases:
                axis, vectors = bases[key].axis, bases[key].vectors
            else:
                own = wide(toward[name]).reshape(matrix.shape)
                axis, vectors = 0, own / own.norm() if bool(own.any()) else own[:, :0]
            left, energy = without(matrix, vectors.to(matrix.device), axis)
            removed += energy
            parts.append(left - matrix)
        found[name] = _joined(gradient, parts)
    return found, {"dot": dot, "share_removed": removed / whole if whole else 0.0, "spf_fires": dot < 0}


def sharpest_direction(model: Any, safety: Batch) -> tuple[Vector, dict[str, Any]]:
    """Compute the top eigenvector of the safety loss's Hessian over all weights; uphill.

    Args:
        model: at theta_0.
        safety: the refusals.

    Returns:
        The direction; facts: eigenvalue (nats per unit of squared distance) and residual.
    """
    found = top_eigenvalues(model, safety, count=1, parameters="all", tolerance=1e-3)
    vector = dict(found.vectors[0])
    slope = curvature_along(model, safety, vector).slope
    if slope < 0:
        vector = {name: -part for name, part in vector.items()}
    facts = {"eigenvalue": float(found.values[0]), "residual": float(found.residuals[0]), "products": found.products}
    return vector, facts


def _joined(like: Tensor, parts: Sequence[Tensor]) -> Tensor:
    whole = torch.stack(list(parts)) if like.dim() == 3 else parts[0]
    return whole.reshape(like.shape)
