"""Gradients of fixed example sets, taken without leaving a trace in the model.

What is covered: the exact geometry of per-example gradients in one pass (`gradient_gram`,
`gradient_dots`, `gradient_sketch`, `gradient_factors`, and several at once by `gradient_pass`),
for every kind of weight: linear layers, embeddings and norms by rule, whatever else by a loop.
Under LoRA the weights are the base weights that carry adapters. Beside them: the curvature of a
set's loss along a direction and its top eigenvalues (`hessian_vector`, `curvature_along`,
`top_eigenvalues`), and Adam's metric (`adam_preconditioner`).

What is not covered: quantized weights, models split over several devices. Gradients are taken
in eval mode: dropout is off, and so is activation checkpointing, which transformers ties to
train mode; where memory is short, lower the budget.
"""

from geomsafe.gradients.adam import adam_preconditioner
from geomsafe.gradients.bases import LeftBasis
from geomsafe.gradients.curvature import Curvature, HessianVector, curvature_along, hessian_vector
from geomsafe.gradients.eigenvalues import Eigenvalues, top_eigenvalues
from geomsafe.gradients.engine import (
    Batch,
    gradient_dots,
    gradient_factors,
    gradient_gram,
    gradient_pass,
    gradient_sketch,
)
from geomsafe.gradients.factors import Factors, GradientFactors
from geomsafe.gradients.losses import target_log_probs, token_losses
from geomsafe.gradients.products import row_dots
from geomsafe.gradients.quantities import Basis, Dots, Gram, Quantity, Sketch, Sum
from geomsafe.gradients.results import GradientDots, GradientGram, GradientSketch
from geomsafe.gradients.targets import gradient_targets, target_shapes
from geomsafe.gradients.undisturbed import undisturbed

__all__ = [
    "Basis",
    "Batch",
    "Curvature",
    "Dots",
    "Eigenvalues",
    "Factors",
    "GradientDots",
    "GradientFactors",
    "GradientGram",
    "GradientSketch",
    "Gram",
    "HessianVector",
    "LeftBasis",
    "Quantity",
    "Sketch",
    "Sum",
    "adam_preconditioner",
    "curvature_along",
    "gradient_dots",
    "gradient_factors",
    "gradient_gram",
    "gradient_pass",
    "gradient_sketch",
    "gradient_targets",
    "hessian_vector",
    "row_dots",
    "target_log_probs",
    "target_shapes",
    "token_losses",
    "top_eigenvalues",
    "undisturbed",
]
