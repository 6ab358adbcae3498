"""A run's own check that its gradients are right: the engine against plain autograd, on a few of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geomsafe.data import Encoded, collate
from geomsafe.gradients import gradient_gram, target_shapes
from geomsafe.gradients.checking import gram_error, rounding

ROWS = 3
"""Rows of the training data that are compared."""

ELEMENTS = 1 << 26
"""Elements of the compared weights together, about: two gradients of them are held, 256 MiB each in float32."""


def gradient_check(model: Any, rows: Sequence[Encoded], pad_id: int) -> dict[str, Any]:
    """Compare per-example inner products with those of one backward pass a row.

    Args:
        model: theta_0 as it will be trained; left as found.
        rows: the training data; the first `ROWS` are used.
        pad_id: token id of padding.

    Returns:
        The entry `checks.gradients` of the record's provenance: `relative_error` (the largest of any weight), `weight`
        (where), `tolerance` (what the dtype's rounding explains), `rows`, `weights` compared and `of` how many.
    """
    batch = collate(list(rows[:ROWS]), pad_id)
    shapes = target_shapes(model)
    elements = sum(shape.numel() for shape in shapes.values())
    # Of a large model every n-th weight, so that all depths and kinds are seen.
    names = list(shapes)[:: -(-elements // ELEMENTS)]
    gram = gradient_gram(model, batch, reduction="sum", parameters=names)
    error, worst = gram_error(model, batch, gram)
    return {
        "relative_error": error,
        "tolerance": 2 * rounding(model),
        "weight": worst,
        "rows": len(batch["labels"]),
        "weights": len(names),
        "of": len(shapes),
    }
