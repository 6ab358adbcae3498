"""Gradients of fixed example sets, taken without leaving a trace in the model.

What is covered: token-summed gradients of blocks of examples (`block_gradients`) for
every trainable weight, and under LoRA for the base weights that carry adapters; the
float64 Gram matrices between blocks (`row_gram`); a plan that keeps both within a
memory budget (`plan_capture`).

What is not covered yet: Gram matrices of single examples, sketches, curvature.
Gradients are taken in eval mode: dropout is off, and so is activation checkpointing,
which transformers ties to train mode; where memory is short, use smaller batches.
"""

from geomsafe.gradients.adam import adam_preconditioner
from geomsafe.gradients.blocks import Batch, BlockGradients, block_gradients
from geomsafe.gradients.losses import token_losses
from geomsafe.gradients.plan import CapturePlan, plan_capture
from geomsafe.gradients.products import row_dots, row_gram
from geomsafe.gradients.targets import gradient_targets, target_shapes
from geomsafe.gradients.undisturbed import undisturbed

__all__ = [
    "Batch",
    "BlockGradients",
    "CapturePlan",
    "adam_preconditioner",
    "block_gradients",
    "gradient_targets",
    "plan_capture",
    "row_dots",
    "row_gram",
    "target_shapes",
    "token_losses",
    "undisturbed",
]
