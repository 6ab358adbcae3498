"""One capture's geometry: every quantity of all sets in one backward pass, as the capture file names them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from geomsafe.gradients import Dots, Gram, gradient_pass
from geomsafe.probes.examples import Example, padded
from geomsafe.probes.onesample import MOST, OneSample, as_tensors, evenly, halves_of
from geomsafe.probes.sums import Facing, SetSum, Summed

RANK = 20
"""Left singular vectors kept of each set's gradient: the rank at which the literature cuts (CER(20), SPF)."""

SKETCH_DIM = 1024
SKETCH_SEED = 0

EXACT = 768
"""Shorter side of a matrix that is decomposed at every capture; larger ones are at the first and last."""

AFFORDABLE = 2048
"""Shorter side of a matrix that is decomposed without a GPU at all: above, it takes minutes."""

SINGLES = 8
"""Safety examples that are taken one by one."""


@dataclass
class Found:
    """Tensors of a capture, what its metadata must say of them, and what was left out."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # matrix -> why it has no spaces
    spaces: dict[str, dict[str, Facing]] = field(default_factory=dict)  # of each set


@dataclass(frozen=True)
class Probed:
    """The model and the weights of it that are measured; the same for every capture of a run."""

    model: Any
    shapes: Mapping[str, torch.Size]
    pad_id: int
    memory: int  # bytes that one pass may hold

    def matrices(self, thorough: bool, skipped: dict[str, str]) -> list[str]:
        """Choose the weights whose gradients are decomposed.

        Args:
            thorough: whether slow ones are decomposed as well.
            skipped: receives the matrices that are left out although this is thorough.

        Returns:
            Names in order.
        """
        on_gpu = next(self.model.parameters()).is_cuda
        chosen = []
        for name, shape in self.shapes.items():
            shorter = min(shape[-2:]) if len(shape) in {2, 3} else 0
            if len(shape) > 3:
                skipped[name] = f"a weight of shape {tuple(shape)} is no matrix"
            elif shorter > AFFORDABLE and not on_gpu:
                skipped[name] = f"{tuple(shape)} needs a GPU: the limit without is {AFFORDABLE}"
            elif shorter and (thorough or shorter <= EXACT):
                chosen.append(name)
        return chosen

    def run(self, examples: Sequence[Example], quantities: Mapping[str, Any]) -> dict[str, Any]:
        """Take token-summed quantities of examples in one pass."""  # noqa: DOC201
        return gradient_pass(
            self.model,
            padded(examples, self.pad_id),
            quantities,
            reduction="sum",
            parameters=list(self.shapes),
            memory_budget=self.memory,
        )


def measure_sets(
    probed: Probed,
    sets: Mapping[str, Sequence[Example]],
    *,
    changes: Mapping[str, Mapping[str, Tensor]],
    preconditioner: Mapping[str, Tensor] | None,
    at_start: Mapping[str, Mapping[str, Facing]],
    spectra: bool,
) -> Found:
    """Measure all sets in one pass.

    Args:
        probed: model and weights.
        sets: examples by set; their order is that of the examples axis.
        changes: "displacement" and "update": name -> tensor of the weight's shape.
        preconditioner: P by name, for a second Gram matrix.
        at_start: the spaces of step 0, for shares of the changes inside them.
        spectra: whether this capture has singular values and takes slow matrices too.

    Returns:
        The tensors, named as in the capture file.
    """
    found = Found()
    examples = [example for rows in sets.values() for example in rows]
    places = _places(sets)
    matrices = probed.matrices(spectra, found.skipped)
    asked: dict[str, Any] = {"gram": Gram()} | {what: Dots(change) for what, change in changes.items()}
    if preconditioner is not None:
        asked["preconditioned"] = Gram(preconditioner)
    for kind, members in places.items():
        asked[kind] = SetSum(members, matrices, rank=RANK, dim=SKETCH_DIM, seed=SKETCH_SEED)
    taken = probed.run(examples, asked)
    names = list(probed.shapes)
    gram = taken["gram"]
    found.facts = {"slow": list(gram.slow), "routes": dict(gram.routes), "basis_axis": {}}
    found.tensors |= {
        "example_gram": _stacked(gram, names),
        "example_tokens": gram.tokens,
        "example_losses": gram.losses,
    }
    if preconditioner is not None:
        found.tensors["preconditioned_gram"] = _stacked(taken["preconditioned"], names)
    for what in changes:
        found.tensors[f"{what}_dots"] = _stacked(taken[what], names)
    for kind, members in places.items():
        summed: Summed = taken[kind]
        found.spaces[kind] = summed.spaces
        zero = torch.zeros(SKETCH_DIM, dtype=torch.float64)
        sketches = [summed.sketches.get(name, zero) for name in names]
        found.tensors[f"{kind}_sketch"] = torch.stack(sketches).float()
        for name, space in summed.spaces.items():
            found.tensors[f"{kind}_basis/{name}"] = space.vectors.float().cpu()
            found.facts["basis_axis"][name] = space.axis
        if spectra:
            tokens = int(gram.tokens[members].sum())
            found.tensors |= singular_values(kind, summed, probed.shapes, tokens)
    _shares(found, changes, at_start)
    return found


def measure_nulls(probed: Probed, nulls: Mapping[str, Sequence[Example]], names: Sequence[str]) -> Found:
    """Take the singular values of null sets, in one pass.

    Args:
        probed: the model that they are measured on.
        nulls: examples by null.
        names: matrices to decompose.

    Returns:
        Their singular values, and in `facts` their counts and token-mean losses.
    """
    found = Found()
    examples = [example for rows in nulls.values() for example in rows]
    asked: dict[str, Any] = {kind: SetSum(members, names, rank=0) for kind, members in _places(nulls).items()}
    # Token counts and losses come with any per-parameter result; dots with nothing cost nothing.
    taken = probed.run(examples, asked | {"none": Dots({})})
    losses = {}
    for kind, members in _places(nulls).items():
        tokens = int(taken["none"].tokens[members].sum())
        losses[kind] = float(taken["none"].losses[members].sum()) / tokens
        found.tensors |= singular_values(kind, taken[kind], probed.shapes, tokens)
    counts = {kind: len(rows) for kind, rows in nulls.items()}
    found.facts = {"null_losses": losses, "null_examples": counts}
    return found


def measure_singles(
    probed: Probed,
    safety: Sequence[Example],
    clusters: Sequence[str],
    same_text: Sequence[Example],
    matrices: Sequence[str],
) -> Found:
    """Take overlaps of single safety examples with the batch, with their null and their ceiling.

    Args:
        probed: model and weights.
        safety: the safety examples.
        clusters: the cluster of each.
        same_text: the null's examples, in the order of the safety examples; may be empty.
        matrices: weights to measure.

    Returns:
        The overlaps; nothing, with the reason, where the examples are of one cluster or do not fit into one pass.
    """
    found = Found()
    halves = halves_of(clusters)
    if len(set(halves)) < 2:
        found.skipped["one-sample overlaps"] = "all safety examples are of one cluster: there is no half without it"
        return found
    singles = evenly(len(safety), SINGLES)
    count = len(safety)
    null = list(range(count, count + len(same_text)))
    quantity = OneSample(range(count), halves, null, singles, matrices)
    overlaps = probed.run([*safety, *same_text], {"phi": quantity})["phi"]
    if not overlaps:
        found.skipped["one-sample overlaps"] = (
            f"{count + len(same_text)} examples do not fit into one pass of {probed.memory / 2**30:.1f} GiB"
        )
        return found
    found.tensors = as_tensors(overlaps)
    found.facts = {"phi": {"ranks": list(range(1, MOST + 1)), "singles": singles, "halves": halves}}
    return found


def singular_values(kind: str, summed: Summed, shapes: Mapping[str, torch.Size], tokens: int) -> dict[str, Tensor]:
    """Name the singular values of a set's token-mean gradient.

    Args:
        kind: the set.
        summed: of its token-summed gradient.
        shapes: of the weights.
        tokens: target tokens of the set.

    Returns:
        `<set>_singular_values/<matrix>`: (min(shape),) float32, falling.
    """
    tensors = {}
    for name, space in summed.spaces.items():
        shape = shapes[parameter_of(name)[0]]
        tensors[f"{kind}_singular_values/{name}"] = _filled(space.singular_values, min(shape[-2:])) / tokens
    return tensors


def _filled(found: Tensor, length: int) -> Tensor:
    values = torch.zeros(length, dtype=torch.float32)
    values[: len(found)] = found.float().cpu()
    return values


def _shares(
    found: Found,
    changes: Mapping[str, Mapping[str, Tensor]],
    at_start: Mapping[str, Mapping[str, Facing]],
) -> None:
    """Add the squared norms of each change inside every space, of now and of step 0, column by column."""
    inside = [
        (f"{kind}@{when}", spaces)
        for when, of_sets in (("0", at_start), ("t", found.spaces))
        for kind, spaces in of_sets.items()
    ]
    for what, change in changes.items():
        for matrix in dict.fromkeys(name for _, spaces in inside for name in spaces):
            whole, index = parameter_of(matrix)
            tensor = change[whole] if index is None else change[whole][index]
            for where, spaces in inside:
                if matrix in spaces:
                    found.tensors[f"{what}_in/{where}/{matrix}"] = spaces[matrix].inside(tensor)


def parameter_of(matrix: str) -> tuple[str, int | None]:
    """Return parameter and expert of a matrix: `w[3]` is expert 3 of the fused weight `w`."""
    if not matrix.endswith("]"):
        return matrix, None
    whole, _, index = matrix[:-1].rpartition("[")
    return whole, int(index)


def _places(sets: Mapping[str, Sequence[Example]]) -> dict[str, list[int]]:
    places, start = {}, 0
    for kind, rows in sets.items():
        places[kind] = list(range(start, start + len(rows)))
        start += len(rows)
    return places


def _stacked(found: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.stack([found[name] for name in names])


def norms_of(change: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Return ||D||_2 by parameter, (params,) float64, squares summed in float64."""
    norms = [float(torch.linalg.vector_norm(change[name].cpu().double())) for name in names]
    return torch.tensor([norm if math.isfinite(norm) else math.nan for norm in norms], dtype=torch.float64)
