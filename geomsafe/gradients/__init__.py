"""Gradients of fixed example sets, taken without leaving a trace in the model.

What is covered: token-summed gradients of blocks of examples (`block_gradients`) for
every trainable weight, and under LoRA for the base weights that carry adapters; the
float64 Gram matrices between blocks (`row_gram`); a plan that keeps both within a
memory budget (`plan_capture`); the curvature of a set's loss along a direction and its top
eigenvalues (`hessian_vector`, `curvature_along`, `top_eigenvalues`); Adam's preconditioner
(`adam_preconditioner`).

What is not covered yet: Gram matrices of single examples, sketches.
Gradients are taken in eval mode: dropout is off, and so is activation checkpointing,
which transformers ties to train mode; where memory is short, use smaller batches.
"""

from geomsafe.gradients.adam import adam_preconditioner
from geomsafe.gradients.blocks import Batch, BlockGradients, block_gradients
from geomsafe.gradients.curvature import Curvature, HessianVector, curvature_along, hessian_vector
from geomsafe.gradients.eigenvalues import Eigenvalues, top_eigenvalues
from geomsafe.gradients.losses import token_losses
from geomsafe.gradients.plan import CapturePlan, plan_capture
from geomsafe.gradients.products import row_dots, row_gram
from geomsafe.gradients.targets import gradient_targets, target_shapes
from geomsafe.gradients.undisturbed import undisturbed

__all__ = [
    "Batch",
    "BlockGradients",
    "CapturePlan",
    "Curvature",
    "Eigenvalues",
    "HessianVector",
    "adam_preconditioner",
    "block_gradients",
    "curvature_along",
    "gradient_targets",
    "hessian_vector",
    "plan_capture",
    "row_dots",
    "row_gram",
    "target_shapes",
    "token_losses",
    "top_eigenvalues",
    "undisturbed",
]
