"""The alignment direction of a weight, V = theta_0 - theta_base, as a map C on displacements.

Two maps go under this name (V has the output side first, so that C acts on the output side):

- `released`: C = V V^T / ||V||_F, what the code of Safe LoRA (arXiv 2405.16833) and AsFT (arXiv 2506.08473)
  computes. It is no projector: its eigenvalues are sigma_i^2 / ||V||_F, so that C grows with V itself and
  I - C does not vanish on any direction in general.
- `true`: C = U U^T, the orthogonal projector onto the column space of V, or onto its `rank` leading left singular
  vectors. A V of full row rank, which V of a fully fine-tuned square weight is, gives C = I: it says nothing
  without `rank`.

Nothing d x d is formed for a displacement that is given by its factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from geomsafe.errors import ConfigError, ModelError
from geomsafe.methods.adapters import adapted_layers
from geomsafe.methods.origin import Origin, wide
from geomsafe.models import base_parameter_name, trained_parameters

Projector = Literal["released", "true"]


class Alignment:
    """C of one weight.

    Attributes:
        rank: dimension of the space that C maps onto.
        outputs: d_out.
    """

    def __init__(self, difference: Tensor, projector: Projector, rank: int | None = None) -> None:
        """Prepare C.

        Args:
            difference: V (d_out, d_in), not zero.
            projector: `released` or `true`.
            rank: leading left singular vectors that `true` keeps; None: all that V has.
        """
        self.outputs = len(difference)
        self._projects = projector == "true"
        if not self._projects:
            self.rank = min(difference.shape)
            self._left, self._scale = difference, 1 / float(torch.linalg.vector_norm(difference))
            return
        vectors, values, _ = torch.linalg.svd(difference, full_matrices=False)
        floor = values[0] * max(difference.shape) * torch.finfo(values.dtype).eps
        self.rank = min(int((values > floor).sum()), rank or self.outputs)
        self._left, self._scale = vectors[:, : self.rank].contiguous(), 1.0

    @property
    def is_identity(self) -> bool:
        """Whether C is a true projector onto everything, so that I - C is nothing."""
        return self._projects and self.rank == self.outputs

    def apply(self, moved: Tensor) -> Tensor:
        """Return C D.

        Args:
            moved: D (d_out, columns), or a factor of it.

        Returns:
            (d_out, columns).
        """
        left = self._left.to(moved.dtype)
        return self._scale * (left @ (left.T @ moved))


def alignments(
    label: str,
    model: nn.Module,
    origin: Origin,
    base: Mapping[str, Tensor] | None,
    projector: Projector,
    rank: int | None,
) -> dict[str, Alignment]:
    """Prepare C of every matrix that training changes; biases and norms have none.

    Args:
        label: the method's label, for messages.
        model: the model that is trained.
        origin: theta_0.
        base: theta_base by base name; more names than needed do no harm.
        projector: `released` or `true`.
        rank: as `Alignment` takes it.

    Returns:
        Base name -> C.

    Raises:
        ConfigError: there is no base, or every C is the identity.
        ModelError: a weight has no partner in theta_base, equals it, or is no matrix. All are named.
    """  # noqa: DOC502
    if base is None:
        raise ConfigError(f"method {label} needs theta_base, the model before alignment: give --base-model")
    starts = origin.weights(model)
    require_partners(label, model, base)
    first = input_first(model)
    found = {}
    for name, start in starts:
        if start.dim() < 2:
            continue
        difference = start - wide(base[name].detach().to(start.device))
        if not bool(difference.any()):
            raise ModelError(
                f"method {label}: theta_base and theta_0 are equal in '{name}': there is no direction of alignment, "
                "give the model from before alignment as --base-model"
            )
        narrow = difference.to(torch.float64 if _is_double(model) else torch.float32)
        found[name] = Alignment(narrow.T if name in first else narrow, projector, rank)
    if all(one.is_identity for one in found.values()):
        raise ConfigError(
            f"method {label}: theta_0 - theta_base has full row rank in every weight, so that the true projector is "
            "the identity and changes nothing: give rank=, or projector=released"
        )
    return found


def require_partners(label: str, model: nn.Module, base: Mapping[str, Tensor]) -> None:
    """Make sure that every matrix in training has a weight of its name and shape in theta_base.

    Args:
        label: the method's label, for messages.
        model: the model that is trained.
        base: theta_base by base name.

    Raises:
        ModelError: some have not, or are no matrices; all are named.
    """
    shapes = {layer.name: layer.weight.shape for layer in adapted_layers(model)}
    shapes |= {name: weight.shape for name, weight in trained_parameters(model).items() if weight.dim() > 1}
    fused = [name for name, shape in shapes.items() if len(shape) != 2]
    if fused:
        raise ModelError(f"method {label} is defined for matrices, these weights are not: {', '.join(fused)}")
    odd = [
        f"'{name}' ({'absent' if name not in base else f'{tuple(base[name].shape)} against {tuple(shape)}'})"
        for name, shape in shapes.items()
        if name not in base or base[name].shape != shape
    ]
    if odd:
        raise ModelError(
            f"method {label}: {len(odd)} weights have no partner in theta_base: {', '.join(odd)}: "
            "give the model that this one was made from as --base-model"
        )


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model by base name, for a method's `base`.

    Args:
        model: theta_base.

    Returns:
        Name -> the model's own tensor. Tied weights appear under every name they have.
    """
    named = model.named_parameters(remove_duplicate=False)
    return {base_parameter_name(name): weight.detach() for name, weight in named}


def input_first(model: nn.Module) -> set[str]:
    """Return the base names of weights that are stored (d_in, d_out): GPT-2's Conv1D, and embeddings.

    Args:
        model: any model.

    Returns:
        Base names. An embedding that is also the output layer counts as that: output side first.
    """
    return set(_input_first(model))


def _input_first(model: nn.Module) -> Iterator[str]:
    heads = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}
    for path, part in model.named_modules():
        is_table = isinstance(part, nn.Embedding) and id(part.weight) not in heads
        if isinstance(part, Conv1D) or is_table:
            yield base_parameter_name(f"{path}.weight")


def _is_double(model: nn.Module) -> bool:
    return next(model.parameters()).dtype == torch.float64
