"""Safety-preserving fine-tuning (SPF; Zhang et al., arXiv 2601.10141, Algorithm 1), its switches and its controls.

Each step, with G_s the gradient of one refusal at the current weights and G_u that of the task:

    if sum over all weights of <G_u, G_s> < 0:      for each weight:  G_u <- G_u - U (U^T G_u)

U being the k = 20 leading output-side singular vectors of that weight's G_s. Then clipping and the
optimizer. G_s is never added. Both signs along U are removed, not only what conflicts.

U is exact and comes from the anchor's positions: no matrix of the weight's size is decomposed where the
anchor has fewer of them than the weight has rows. The authors' code takes torch.svd_lowrank, and the first
axis of every tensor; here it is the side that faces the layer's output, so GPT-2's Conv1D is seen
transposed, an embedding from its vectors, and fused experts one by one. A bias or gain is out x 1: the
one direction of its safety gradient goes, as in the authors' code. Where a weight's shorter side is not
much above k (LoRA factors, routers) k directions would be most of it: no more than `rank_share` of that
side is removed, and the log counts such weights.

Under LoRA what is projected are the gradients of the factors A and B, which depend on how their product
is split; nothing is said about dW. At step 0, where B = 0, the gradient of A is zero: a basis frozen there
leaves A alone.

Adam comes after: momentum and 1 / sqrt(v) may put back what was removed. `update_dot` in the log is
<update, G_s> of the step as it was taken. Three spaces:

- gradient: as above, before clipping and Adam.
- preconditioned: P G_u is tested and projected, P = 1 / (sqrt(v_hat) + eps) from the steps before, and
  divided by P again: U^T (P G_u') = 0. Before Adam has state, P = 1. ||P G_u|| cannot grow, ||G_u|| can.
- update: the optimizer's update D itself, momentum, clipping and weight decay included, tested by
  <D, G_s> > 0. The removal survives by construction. Put `spf` before methods that move weights.

Controls: `basis=random` removes as much energy of each weight's gradient, in random directions
(`projection.without_random` says how); `anchor=benign` and `anchor=sham` take another behaviour;
`sign=flipped` acts where the gradients agree and must hurt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.errors import ConfigError, TrainingError
from geomsafe.gradients import GradientFactors, adam_preconditioner
from geomsafe.methods.anchored import (
    Anchored,
    AnchorOptions,
    anchor_loss,
    norm,
    products,
    safety_factors,
    token_mean,
    trained_tensors,
    wide,
    with_cosine,
)
from geomsafe.methods.base import Schedule
from geomsafe.methods.projection import allowed_rank, matrices, without, without_random

_LAYER = re.compile(r"^(.*?\.\d+)\.")


class SpfOptions(AnchorOptions):
    """Options of `spf`; the defaults are the paper's."""

    rank: int = Field(20, ge=1, description="singular vectors removed from each weight's gradient")
    rank_share: float = Field(0.5, gt=0, le=1, description="of a weight's shorter side, at most this share is removed")
    test: Literal["global", "layer", "parameter"] = Field("global", description="over what <G_u, G_s> < 0 is tested")
    side: Literal["left", "right", "both"] = Field("left", description="left: the side of the layer's output")
    refresh: int = Field(1, ge=1, description="take the safety gradient anew every N steps")
    frozen: bool = Field(default=False, description="keep the basis of the first step")
    space: Literal["gradient", "preconditioned", "update"] = Field(
        "gradient", description="what is tested and projected: before Adam, in its metric, or what it made"
    )
    basis: Literal["safety", "random"] = Field("safety", description="random: control of equal removed energy")
    sign: Literal["normal", "flipped"] = Field("normal", description="flipped: control that acts where both agree")
    seed: int = Field(0, ge=0, description="of the random basis")


class Spf(Anchored):
    """Remove the leading safety subspace from task gradients that conflict with a refusal."""

    name: ClassVar[str] = "spf"
    Options: ClassVar[type[Settings]] = SpfOptions
    options: SpfOptions

    def __init__(self, options: Settings | None = None, *, anchor: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(options, anchor=anchor)
        self._optimizer: torch.optim.Optimizer | None = None
        self._capped: set[str] = set()
        self._safety: dict[str, Tensor] = {}
        self._size = 0.0
        self._factors: GradientFactors | None = None
        self._bases: dict[str, list[tuple[int, Tensor]]] = {}
        self._step = 0
        self._device = torch.device("cpu")

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Check anchor and optimizer, and find the weights whose rank is capped.

        Args:
            model: the model that is trained.
            optimizer: read where `space` is preconditioned.
            schedule: not used.

        Raises:
            ConfigError: there is no anchor, or the optimizer is not Adam and its metric is asked for.
        """  # noqa: DOC502
        super().start(model, optimizer, schedule)
        inner = getattr(optimizer, "optimizer", optimizer)
        other = inner is not None and not isinstance(inner, torch.optim.Adam)
        if self.options.space == "preconditioned" and other:
            raise ConfigError(
                f"method {self.label}: space=preconditioned needs Adam's state, and the optimizer is "
                f"{type(inner).__name__}: use space=gradient or space=update"
            )
        self._optimizer = optimizer
        self._device = next(model.parameters()).device
        self._capped = {
            name
            for name, tensor in trained_tensors(model).items()
            for _, matrix in matrices(tensor.detach())
            if min(matrix.shape) > 1 and self._rank(matrix) < self.options.rank
        }

    @torch.no_grad()
    def on_gradient(self, model: nn.Module, step: int) -> dict[str, float]:
        """Take the safety gradient and, unless `space` is update, project the task gradient.

        Args:
            model: the model, its gradients accumulated.
            step: the step that is about to be taken.

        Returns:
            `anchor_loss` (nats; on steps that take the gradient), and what `_project` says: `cosine` of task and
            safety gradient, `fired` (1 or 0), `projected` weights, `capped` ones among them, and `removed`, the
            share of the gradient's squared norm that is gone.
        """
        tensors = trained_tensors(model)
        log = self._refresh(model, step)
        self._remember({name: tensor for name, tensor in tensors.items() if name in self._safety})
        if self.options.space == "update":
            return log
        metric = self._metric(model) if self.options.space == "preconditioned" else {}
        given = {name: wide(t.grad) for name, t in tensors.items() if t.grad is not None and name in self._safety}
        changed, found = self._project({name: g * metric[name] if metric else g for name, g in given.items()})
        for name, gradient in changed.items():
            own = tensors[name].grad
            if own is not None:
                own.copy_(gradient / metric[name] if metric else gradient)
        return log | found

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure the update against the safety gradient; where `space` is update, project it first.

        Args:
            model: the model after the optimizer step.
            step: the step that was taken.

        Returns:
            `update_dot` = <update, safety_gradient> in nats: the predicted change of the anchor's loss, positive =
            less safe; `update_cosine`. The safety gradient is that of `on_gradient`.
        """
        update = self._update(model)
        log: dict[str, float] = {}
        if self.options.space == "update":
            changed, log = self._project({name: -moved for name, moved in update.items()})
            tensors = trained_tensors(model)
            for name, descent in changed.items():
                start = wide(tensors[name]) - update[name]
                tensors[name].copy_(start - descent)
                update[name] = wide(tensors[name]) - start
        log |= self._effect(update, self._safety, self._size)
        if self._factors is not None:
            self._safety, self._factors = {}, None
            self._bases = self._bases if self.options.frozen else {}
        return log

    def state_dict(self) -> dict[str, Tensor]:
        """Return what outlives a step: a basis that is frozen, a safety gradient that is kept for several."""
        held = {f"gradient.{name}": tensor for name, tensor in self._safety.items()} if self._kept else {}
        if self._kept or self.options.frozen:
            for name, sides in self._bases.items():
                held |= {f"basis.{place}{axis}.{name}": vectors for place, (axis, vectors) in enumerate(sides)}
        return held

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a saved basis and gradient.

        Args:
            tensors: what `state_dict` returned.

        Raises:
            TrainingError: they were saved under other options.
        """
        expected = ["basis"] * (self._kept or self.options.frozen) + ["gradient"] * self._kept
        if sorted({name.partition(".")[0] for name in tensors}) != expected:
            raise TrainingError(f"method {self.label}: the checkpoint was written with another refresh or frozen")
        self._safety, self._bases = {}, {}
        for key in sorted(tensors):
            kind, _, name = key.partition(".")
            tensor = tensors[key].to(self._device)
            if kind == "gradient":
                self._safety[name] = tensor
            else:
                number, _, name = name.partition(".")
                self._bases.setdefault(name, []).append((int(number[1]), tensor))
        self._size = norm(self._safety)

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry, with the weights whose rank is capped."""
        return super().describe(schedule) | {"capped": sorted(self._capped)}

    @property
    def _kept(self) -> bool:
        return self.options.refresh > 1

    def _rank(self, matrix: Tensor) -> int:
        return allowed_rank(self.options.rank, self.options.rank_share, matrix)

    def _metric(self, model: nn.Module) -> dict[str, Tensor]:
        inner: Any = getattr(self._optimizer, "optimizer", self._optimizer)
        if not inner.state:
            return {}
        # A weight that Adam has not moved yet has no metric; its gradient is taken as it is.
        found = adam_preconditioner(model, self._optimizer)
        return {name: torch.where(metric > 0, metric, torch.ones_like(metric)) for name, metric in found.items()}

    def _refresh(self, model: nn.Module, step: int) -> dict[str, float]:
        self._step = step
        if self._safety and (step - 1) % self.options.refresh:
            return {}
        anchor: Any = self.anchor
        factors = safety_factors(model, anchor)
        self._safety, self._factors = token_mean(factors), factors
        self._size = norm(self._safety)
        if not self.options.frozen:
            self._bases = {}
        elif self._bases:
            return {"anchor_loss": anchor_loss(factors)}
        if self._kept or self.options.frozen:
            for name, tensor in self._safety.items():
                for index, matrix in matrices(tensor):
                    self._basis(name, index, matrix)
        if self._kept:
            self._factors = None
        return {"anchor_loss": anchor_loss(factors)}

    def _project(self, vectors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Test descent vectors, of which -lr times each would be a step, and project those in conflict."""  # noqa: DOC201
        each, whole = products(vectors, self._safety)
        sign = -1.0 if self.options.sign == "flipped" else 1.0
        groups: dict[str, float] = {}
        for name, dot in each.items():
            groups[self._group(name)] = groups.get(self._group(name), 0.0) + sign * dot
        changed, gone = {}, 0.0
        for place, name in enumerate(vectors):
            if groups[self._group(name)] < 0:
                changed[name], energy = self._projected(name, vectors[name], place)
                gone += energy
        log = with_cosine("cosine", sum(each.values()), whole, self._size)
        log |= {"fired": float(bool(changed)), "projected": len(changed), "capped": len(self._capped & changed.keys())}
        return changed, log | {"removed": gone / whole**2 if whole else 0.0}

    def _group(self, name: str) -> str:
        if self.options.test == "global":
            return ""
        found = _LAYER.match(name) if self.options.test == "layer" else None
        return found[1] if found else name

    def _projected(self, name: str, vector: Tensor, place: int) -> tuple[Tensor, float]:
        """Return one weight's vector without its subspaces, and the squared norm that is gone."""  # noqa: DOC201
        generator = torch.Generator()
        generator.manual_seed(((self.options.seed * 1_000_003 + self._step) * 1_000_003 + place) % 2**63)
        parts, gone = [], 0.0
        for (index, matrix), (_, safety) in zip(matrices(vector), matrices(self._safety[name]), strict=True):
            left = real = matrix
            for axis, basis in self._basis(name, index, safety):
                real, energy = without(real, basis, axis)
                if self.options.basis == "random":
                    left = without_random(left, energy, axis, generator)
                gone += energy
            parts.append(left if self.options.basis == "random" else real)
        whole = torch.stack(parts) if vector.dim() == 3 else parts[0]
        return whole.reshape(vector.shape), gone

    def _basis(self, name: str, index: int | None, safety: Tensor) -> list[tuple[int, Tensor]]:
        """Return the axes and bases (side, <= rank) that are removed from one matrix; nothing where G_s is zero."""  # noqa: DOC201
        key = name if index is None else f"{name}[{index}]"
        if key not in self._bases:
            self._bases[key] = list(self._sides(name, index, safety))
        return [(axis, vectors) for axis, vectors in self._bases[key] if vectors.shape[1]]

    def _sides(self, name: str, index: int | None, safety: Tensor) -> Iterator[tuple[int, Tensor]]:
        if self._factors is None:
            return
        if self._safety[name].dim() < 2:
            length = safety.norm()
            yield 0, safety / length if length else safety.new_zeros((len(safety), 0))
            return
        for opposite in {"left": [False], "right": [True], "both": [False, True]}[self.options.side]:
            found = self._factors.decomposition(name, self._rank(safety), None, index, opposite=opposite)
            yield found.axis, found.vectors
