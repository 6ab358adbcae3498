"""Which layer and module a parameter belongs to, read from its name, never from its position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The number that follows one of these containers is the layer: Llama, Qwen, Gemma, Phi,
# Mixtral ("layers"), GPT-2 ("h"), GPT-NeoX ("layers"), BERT-like ("layer"), others ("blocks").
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|embed_in|word_embeddings|embed_positions)(?:\.|$)")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_projection)(?:\.|$)")
_SUFFIX = re.compile(r"\.(?:weight|bias)$")

# Module kinds by the last words of a name, first match wins. Fused weights keep their own kind: the
# gradients of q, k and v in one tensor have one left space, and their Gram cannot be taken apart.
_KINDS = (
    ("norm", re.compile(r"norm|(?:^|\.)ln_(?:\d+|f|in|out)(?:\.|$)")),
    ("qkv", re.compile(r"(?:qkv_proj|query_key_value|c_attn|Wqkv)(?:\.|$)")),
    ("gate_up", re.compile(r"gate_up_proj(?:_bias)?(?:\.|$)")),
    ("q", re.compile(r"(?:q_proj|query|q_lin)(?:\.|$)")),
    ("k", re.compile(r"(?:k_proj|key|k_lin)(?:\.|$)")),
    ("v", re.compile(r"(?:v_proj|value|v_lin)(?:\.|$)")),
    ("o", re.compile(r"(?:o_proj|out_proj|attn\.c_proj|attention\.dense|attention\.output\.dense)(?:\.|$)")),
    ("gate", re.compile(r"(?:gate_proj|w1)(?:\.|$)")),
    ("up", re.compile(r"(?:up_proj|w3|c_fc|fc1|dense_h_to_4h|intermediate\.dense)(?:\.|$)")),
    ("down", re.compile(r"(?:down_proj(?:_bias)?|w2|mlp\.c_proj|fc2|dense_4h_to_h|output\.dense)(?:\.|$)")),
    ("router", re.compile(r"(?:gate|router)(?:\.|$)")),
)
KINDS = ("embed", "q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "router", "norm", "head", "other")
"""Module kinds in the order of an axis."""


class Place(NamedTuple):
    """Where a parameter lives.

    `layer` is the transformer layer's own number, None outside the stack; `group` is the
    label of a layer on an axis ("3", "embedding", "head", "other"); `module` is the rest of
    the name, such as "mlp.down_proj".
    """

    layer: int | None
    group: str
    module: str


class Group(NamedTuple):
    """The parameters of one layer: its label and their indices in the list given."""

    label: str
    indices: list[int]


def locate(name: str) -> Place:
    """Read layer and module off a parameter name.

    Args:
        name: such as "model.layers.3.mlp.down_proj.weight" or "transformer.h.0.attn.c_attn.bias".

    Returns:
        Its place; a bias keeps ".bias" in `module`.
    """
    inside = _LAYER.search(name)
    if inside:
        return Place(int(inside[1]), inside[1], inside[2].removesuffix(".weight"))
    if _EMBEDDING.search(name):
        return Place(None, "embedding", _SUFFIX.sub("", name).rsplit(".", 1)[-1])
    if _HEAD.search(name):
        return Place(None, "head", _SUFFIX.sub("", name).rsplit(".", 1)[-1])
    return Place(None, "other", _SUFFIX.sub("", name).rsplit(".", 1)[-1])


def by_layer(names: Sequence[str]) -> list[Group]:
    """Group parameters by layer, in the order embedding, 0, 1, ..., other, head.

    Args:
        names: (params,) parameter names.

    Returns:
        The groups that occur; every parameter is in exactly one.
    """
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(locate(name).group, []).append(index)
    return [Group(label, found[label]) for label in sorted(found, key=_order)]


def by_kind(names: Sequence[str]) -> list[Group]:
    """Group parameters by the kind of module: q, k, v, o, gate, up, down, embed, head, norm, ...

    Args:
        names: (params,) parameter names; a bias belongs to its module's kind, a fused weight
            to "qkv" or "gate_up".

    Returns:
        The groups that occur, in the order of `KINDS`; every parameter is in exactly one.
    """
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(module_kind(name), []).append(index)
    return [Group(kind, found[kind]) for kind in KINDS if kind in found]


def module_kind(name: str) -> str:
    """Read the kind of module off a parameter name, for Llama, Qwen, Phi-3, Mixtral, GPT-2, GPT-NeoX and OPT names.

    Args:
        name: such as "transformer.h.0.attn.c_proj.weight"; an expert's index in brackets is ignored.

    Returns:
        One of `KINDS`; "other" for a name of no known form.
    """
    plain = _SUFFIX.sub("", name.split("[")[0])
    place = locate(plain)
    if place.layer is None and place.group in {"embedding", "head"}:
        return {"embedding": "embed", "head": "head"}[place.group]
    return next((kind for kind, pattern in _KINDS if pattern.search(plain)), "other")


def summed(grams: NDArray[np.float64], groups: Sequence[Group]) -> NDArray[np.float64]:
    """Add up the Gram matrices of each group: gradients of several parameters are one longer gradient.

    Args:
        grams: (params, examples, examples).
        groups: of parameters.

    Returns:
        (groups, examples, examples).
    """
    return np.array([grams[group.indices].sum(axis=0) for group in groups])


def _order(label: str) -> tuple[int, int]:
    if label.isdigit():
        return (1, int(label))
    return ({"embedding": 0, "other": 2, "head": 3}[label], 0)
