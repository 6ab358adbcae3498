"""Capture files of both schemas, made from small gradient matrices instead of a model.

Everything in a `/2` file is computed from one set of example gradients and one displacement
per weight: Grams, dots, bases, shares, singular values and sketches belong together. Planted:
safety and utility gradients oppose each other in the middle layers while a benign anchor does
not, safety gradients are of low rank, and the displacement leans against utility and, a
little, along safety.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

LAYERS, WIDTH, BLOCKS, PROBES = 4, 24, 8, 32
RANK, DIM = 8, 256
COSINES = {0: 0.05, 1: -0.35, 2: -0.45, 3: -0.1}
PHI_RANKS, SINGLES = (1, 2, 5), tuple(range(0, PROBES, 4))
NULLS = ("random-tokens", "untrained", "benign-length", "loss-matched")


class Moment(NamedTuple):
    """One step of one run: how far the weights are now and were a step before."""

    step: int
    last: bool
    at: float
    before: float
    seed: int
    nulls: bool = True


def names() -> dict[str, tuple[int, ...]]:
    """Return parameter names and shapes of a small Llama."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, WIDTH)}
    for layer in range(LAYERS):
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
            shapes[f"model.layers.{layer}.{part}.weight"] = (WIDTH, WIDTH)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (WIDTH,)
    return shapes | {"model.norm.weight": (WIDTH,)}


def write_blocks(path: Path, moment: Moment) -> None:
    """Write a capture of schema /1: Grams of blocks of examples."""
    shapes, at = names(), moment.at
    rng = np.random.default_rng([moment.seed, moment.step, round(at * 1e6)])
    safety_tokens, utility_tokens = rng.integers(20, 60, BLOCKS), rng.integers(80, 200, BLOCKS)
    grams = np.zeros((len(shapes), 2 * BLOCKS, 2 * BLOCKS))
    tensors: dict[str, np.ndarray] = {}
    for index, (name, shape) in enumerate(shapes.items()):
        size = int(np.prod(shape))
        layer = _layer(name)
        basis, _ = np.linalg.qr(rng.normal(size=(size, 2)))
        cosine = COSINES.get(-1 if layer is None else layer, 0.0)
        safety = basis[:, 0] * (0.1 + 0.1 * at)
        utility = cosine * basis[:, 0] + math.sqrt(1 - cosine**2) * basis[:, 1]
        noisy = 6.0 if layer is None else 0.8
        stacked = np.array(
            [n * safety + noisy * 0.15 * math.sqrt(40 * n / size) * rng.normal(size=size) for n in safety_tokens]
            + [n * utility + noisy * math.sqrt(120 * n / size) * rng.normal(size=size) for n in utility_tokens]
        )
        grams[index] = stacked @ stacked.T
        if len(shape) == 2 and (moment.last or moment.step == 0):
            ranks = np.arange(1, min(shape) + 1)
            tensors[f"safety_singular_values/{name}"] = np.exp(-ranks / 1.5).astype("f4")
            tensors[f"utility_singular_values/{name}"] = np.exp(-ranks / 5.0).astype("f4")
    share = np.sqrt(rng.dirichlet(np.full(len(shapes), 30.0)))
    tensors |= _refusals(rng, at) | {
        "block_gram": grams,
        "safety_tokens": safety_tokens.astype(np.float64),
        "utility_tokens": utility_tokens.astype(np.float64),
        "parameter_norm": np.full(len(shapes), 40 / math.sqrt(len(shapes))),
        "displacement_norm": at * share,
        "displacement_dot_safety": 0.02 * at**2 * share**2,
        "displacement_dot_utility": -0.03 * at * share**2,
        "safety_loss": np.array(_safety_loss(at)),
        "utility_loss": np.array(_utility_loss(at)),
    }
    blocks = {"block_examples": [PROBES // BLOCKS] * (2 * BLOCKS)}
    _save(path, "geomsafe.capture/1", moment, tensors, blocks)


def write_examples(path: Path, moment: Moment) -> None:
    """Write a capture of schema /2: Grams of single examples, bases, shares, sketches and nulls."""
    shapes = names()
    ends = moment.last or moment.step == 0
    sets = ["safety", "utility", *(["sham", "benign"] if ends and moment.nulls else [])]
    rng = np.random.default_rng([moment.seed, moment.step, round(moment.at * 1e6)])
    tokens = {"safety": rng.integers(6, 14, PROBES), "utility": rng.integers(10, 40, PROBES)}
    tokens |= {"sham": tokens["safety"], "benign": tokens["safety"]}
    # Phrasings of one action stand in pairs and share half of their noise.
    clusters = {kind: [f"{kind}-{index // (2 if kind == 'safety' else 1)}" for index in range(PROBES)] for kind in sets}
    n = PROBES * len(sets)
    tensors: dict[str, np.ndarray] = {
        "example_gram": np.zeros((len(shapes), n, n)),
        "displacement_dots": np.zeros((len(shapes), n)),
        "update_dots": np.zeros((len(shapes), n)),
        "example_tokens": np.concatenate([tokens[kind] for kind in sets]).astype(np.int64),
        "example_losses": np.concatenate([
            tokens[kind] * (_utility_loss(moment.at) if kind == "utility" else _safety_loss(moment.at)) for kind in sets
        ]),
        "parameter_norm": np.full(len(shapes), 40 / math.sqrt(len(shapes))),
        "displacement_norm": np.zeros(len(shapes)),
        "update_norm": np.zeros(len(shapes)),
    }
    tensors |= {f"{kind}_sketch": np.zeros((len(shapes), DIM), dtype=np.float32) for kind in sets}
    if moment.step > 0:
        tensors["preconditioned_gram"] = np.zeros((len(shapes), n, n))
    for index, (name, shape) in enumerate(shapes.items()):
        gradients = _gradients(name, shape, sets, tokens, rng, moment)
        _measure(tensors, index, name, shape, gradients, tokens, moment, ends)
    _save(
        path,
        "geomsafe.capture/2",
        moment,
        tensors | _refusals(rng, moment.at),
        {
            "sets": sets,
            "set_examples": dict.fromkeys(sets, PROBES),
            "match": {
                null: {"examples": PROBES} | ({"answer_tokens_apart": 0.0} if null == "benign-length" else {})
                for null in NULLS
                if null != "untrained"
            },
            "phi": {"ranks": PHI_RANKS, "singles": SINGLES, "halves": [at // (PROBES // 2) for at in range(PROBES)]},
            "clusters": clusters,
            "sketch": {"dim": DIM, "seed": 0},
            "basis_rank": RANK,
            "nulls": list(NULLS) if ends and moment.nulls else [],
            "slow": [],
            "routes": dict.fromkeys(shapes, "pairs"),
        },
    )


def _gradients(
    name: str,
    shape: tuple[int, ...],
    sets: list[str],
    tokens: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    moment: Moment,
) -> dict[str, np.ndarray]:
    """Return (examples, *shape) token-summed gradients of each set."""
    layer, size = _layer(name), math.prod(shape)
    directions = _directions(name, shape)
    cosine = COSINES.get(-1 if layer is None else layer, 0.0)
    means = {
        "safety": (0.1 + 0.1 * moment.at) * directions["safety"],
        "utility": cosine * directions["safety"] + math.sqrt(1 - cosine**2) * directions["utility"],
        "sham": (0.1 + 0.05 * moment.at) * directions["sham"],
        "benign": (0.1 + 0.1 * moment.at) * (0.3 * directions["utility"] + directions["benign"]),
    }
    # The embedding's gradients are all noise: their cosine is undefined.
    noisy = 12.0 if layer is None else 0.8
    found = {}
    for kind in sets:
        strength = noisy * float(np.linalg.norm(means[kind])) / math.sqrt(size)
        own = rng.normal(size=(PROBES, size))
        if kind == "safety":
            own = (own + np.repeat(rng.normal(size=(PROBES // 2, size)), 2, axis=0)) / math.sqrt(2)
        found[kind] = (tokens[kind][:, None] * (means[kind].reshape(1, size) + strength * own)).reshape(PROBES, *shape)
    return found


def _directions(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return unit mean gradients of one weight, orthogonal to each other; safety and sham of rank 2, the rest of 8."""
    rng = np.random.default_rng(list(name.encode()))
    found: dict[str, np.ndarray] = {}
    for kind, rank in (("safety", 2), ("utility", 8), ("sham", 2), ("benign", 8)):
        if len(shape) == 1:
            made = rng.normal(size=shape)
        else:
            made = (
                rng.normal(size=(shape[0], rank)) @ np.diag(0.6 ** np.arange(rank)) @ rng.normal(size=(rank, shape[1]))
            )
        for other in found.values():
            made = made - np.sum(made * other) * other
        found[kind] = made / np.linalg.norm(made)
    return found


def _measure(
    tensors: dict[str, np.ndarray],
    index: int,
    name: str,
    shape: tuple[int, ...],
    gradients: Mapping[str, np.ndarray],
    tokens: Mapping[str, np.ndarray],
    moment: Moment,
    ends: bool,
) -> None:
    """Fill in all that a capture holds of one weight."""
    stacked = np.concatenate([one.reshape(PROBES, -1) for one in gradients.values()])
    tensors["example_gram"][index] = stacked @ stacked.T
    if moment.step > 0:
        scale = np.random.default_rng(index).lognormal(0, 1, stacked.shape[1])
        tensors["preconditioned_gram"][index] = (stacked * scale) @ stacked.T
    directions = _directions(name, shape)
    heading = -0.8 * directions["utility"] + 0.3 * directions["safety"]
    heading = heading + 0.6 * np.random.default_rng([moment.seed, index]).normal(size=shape) / math.sqrt(
        math.prod(shape)
    )
    heading = heading / np.linalg.norm(heading) / math.sqrt(len(names()))
    moved = {"displacement": moment.at * heading, "update": (moment.at - moment.before) * heading}
    for what, change in moved.items():
        tensors[f"{what}_norm"][index] = np.linalg.norm(change)
        tensors[f"{what}_dots"][index] = stacked @ change.reshape(-1)
    maps = np.random.default_rng([7, index])
    for kind, own in gradients.items():
        total = own.sum(axis=0)
        if len(shape) == 1:
            projected = maps.normal(size=(DIM, shape[0])) @ total
        else:
            projected = np.einsum(
                "mo,oi,mi->m", maps.normal(size=(DIM, shape[0])), total, maps.normal(size=(DIM, shape[1]))
            )
        tensors[f"{kind}_sketch"][index] = projected / math.sqrt(DIM)
    if len(shape) == 2:
        _left_spaces(tensors, name, gradients, tokens, moved, moment, ends)


def _left_spaces(
    tensors: dict[str, np.ndarray],
    name: str,
    gradients: Mapping[str, np.ndarray],
    tokens: Mapping[str, np.ndarray],
    moved: Mapping[str, np.ndarray],
    moment: Moment,
    ends: bool,
) -> None:
    for kind, own in gradients.items():
        left, values, _ = np.linalg.svd(own.sum(axis=0) / tokens[kind].sum(), full_matrices=False)
        tensors[f"{kind}_basis/{name}"] = left[:, :RANK].astype(np.float32)
        if ends:
            tensors[f"{kind}_singular_values/{name}"] = values.astype(np.float32)
        for what, change in moved.items():
            for at in ("0", "t") if moment.step else ():
                # The mean directions do not turn, so the subspace of step 0 is that of this step.
                tensors[f"{what}_in/{kind}@{at}/{name}"] = np.sum((left[:, :RANK].T @ change) ** 2, axis=1)
    if not ends or not moment.nulls:
        return
    safety = gradients["safety"]
    rng = np.random.default_rng([11, moment.seed])
    for null in NULLS:
        mean = rng.normal(size=safety.shape).mean(axis=0)
        if null == "loss-matched":
            mean = mean + 0.2 * _directions(name, safety.shape[1:])["benign"]
        tensors[f"{null}_singular_values/{name}"] = np.linalg.svd(mean, compute_uv=False).astype(np.float32)
    _one_sample(tensors, name, gradients)


def _one_sample(tensors: dict[str, np.ndarray], name: str, gradients: Mapping[str, np.ndarray]) -> None:
    """Compare singles and halves of the safety set; benign examples stand for the refusals' text elsewhere."""
    safety, null, half = gradients["safety"], gradients["benign"], PROBES // 2
    halves = [_left(safety[:half].sum(axis=0)), _left(safety[half:].sum(axis=0))]
    tensors[f"half_phi/{name}"] = _phi(*halves)
    tensors[f"half_phi_same_text/{name}"] = _phi(_left(null[:half].sum(axis=0)), halves[1])
    for prefix, one in (("single_phi", safety), ("single_phi_same_text", null)):
        tensors[f"{prefix}/{name}"] = np.array([_phi(_left(one[at]), halves[at < half]) for at in SINGLES])


def _left(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.svd(matrix)[0])


def _phi(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = (first.T @ second) ** 2
    return np.array([squares[:k, :k].sum() / k for k in PHI_RANKS], dtype=np.float32)


def _layer(name: str) -> int | None:
    return int(name.split(".")[2]) if ".layers." in name else None


def _safety_loss(at: float) -> float:
    return 0.05 + 0.15 * at**2


def _utility_loss(at: float) -> float:
    return 1.5 * math.exp(-at)


def _refusals(rng: np.random.Generator, at: float) -> dict[str, np.ndarray]:
    margin = rng.normal(4.0 - 0.9 * at, 1.5, PROBES)
    return {
        "refusal_nll": np.logaddexp(0, -margin),
        "refusal_margin": margin,
        "refusal_log_odds": margin - 0.5,
    }


def _save(path: Path, schema: str, moment: Moment, tensors: Mapping[str, np.ndarray], more: Mapping[str, Any]) -> None:
    shapes = names()
    metadata = {"schema": schema, "convention": "token-sum", "step": str(moment.step)} | {
        key: json.dumps(value)
        for key, value in {
            "parameters": list(shapes),
            "shapes": [list(shape) for shape in shapes.values()],
            "prompt_ids": [f"probe{index:011x}" for index in range(PROBES)],
            **more,
        }.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.array(tensor, order="C") for name, tensor in tensors.items()}, path, metadata=metadata)
