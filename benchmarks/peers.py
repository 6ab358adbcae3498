"""Other libraries' ways to per-example gradients, where they are installed and run.

None of them is a dependency: `pip install --no-deps kronfluence opacus backpack-for-pytorch traker einops opt_einsum
einconv unfoldNd` in an environment of its own is enough. Each covers the layers that it knows; how many
of the model's parameters these are is printed beside its time.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
import warnings
from typing import Any

import torch
from contenders import Contender, Work
from torch import Tensor
from torch.func import functional_call
from workload import Batch

from geomsafe.gradients import token_losses


def kronfluence(model: Any, batch: Batch) -> Work:
    """Pairwise scores with the identity in place of a curvature: inner products of the Linear layers' gradients."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import ScoreArguments
    from kronfluence.task import Task

    class Answers(Task):
        def compute_train_loss(self, batch: Batch, model: Any, sample: bool = False) -> Tensor:
            return token_losses(model, batch).losses.sum()

        def compute_measurement(self, batch: Batch, model: Any) -> Tensor:
            return self.compute_train_loss(batch, model)

    logging.disable(logging.WARNING)
    task, folder = Answers(), tempfile.mkdtemp()
    twin = prepare_model(copy.deepcopy(model), task)
    analyzer = Analyzer(
        "benchmark", twin, task, cpu=True, disable_tqdm=True, output_dir=folder, disable_model_save=True
    )
    rows = [{key: value[row] for key, value in batch.items()} for row in range(len(batch["input_ids"]))]
    analyzer.fit_all_factors("identity", rows, factor_args=_factors(), overwrite_output_dir=True)

    def work() -> Tensor:
        analyzer.compute_pairwise_scores(
            "scores",
            "identity",
            query_dataset=rows,
            train_dataset=rows,
            per_device_query_batch_size=len(rows),
            per_device_train_batch_size=len(rows),
            score_args=ScoreArguments(),
            overwrite_output_dir=True,
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"].double()

    return work


def _factors() -> Any:
    from kronfluence.arguments import FactorArguments

    return FactorArguments(strategy="identity")


def opacus(model: Any, batch: Batch) -> Work:
    """Per-example gradients by Opacus' hooks, then a matrix product a parameter."""
    from opacus import GradSampleModule

    warnings.filterwarnings("ignore", module="opacus")
    twin = copy.deepcopy(model).train()
    wrapped = GradSampleModule(twin, loss_reduction="sum", strict=False)

    def work() -> Tensor:
        token_losses(wrapped, batch).losses.sum().backward()
        total = torch.zeros(())
        for weight in wrapped.parameters():
            found = getattr(weight, "grad_sample", None)
            if found is not None:
                flat = found.flatten(1)
                total = total + (flat @ flat.T).double()
                weight.grad_sample = None
        wrapped.zero_grad(set_to_none=True)
        return total

    return work


def backpack(model: Any, batch: Batch) -> Work:
    """BackPACK's BatchGrad on the Linear layers, the ones it knows in a Llama."""
    import backpack as package
    from backpack.extensions import BatchGrad

    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, torch.nn.Linear):
            package.extend(module)
    weights = [module.weight for module in twin.modules() if isinstance(module, torch.nn.Linear)]

    def work() -> Tensor:
        with package.backpack(BatchGrad()):
            token_losses(twin, batch).losses.sum().backward()
        total = torch.zeros(())
        for weight in weights:
            flat = weight.grad_batch.flatten(1)
            total = total + (flat @ flat.T).double()
            del weight.grad_batch
        twin.zero_grad(set_to_none=True)
        return total

    return work


def trak(model: Any, batch: Batch) -> Work:
    """TRAK's features: vmap(grad) and a dense random projection made anew in blocks (its CPU projector)."""
    from trak.gradient_computers import FunctionalGradientComputer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import BasicProjector, ProjectionType

    class Answers(AbstractModelOutput):
        def __init__(self) -> None:
            super().__init__()

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, ids: Tensor, labels: Tensor) -> Tensor:
            logits = functional_call(model, (weights, buffers), (ids[None],), {"use_cache": False}).logits
            return torch.nn.functional.cross_entropy(logits[0, :-1], labels[1:], reduction="sum")

        def get_out_to_loss_grad(self, *_: Any) -> Tensor:
            return torch.ones(1)

    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    size = sum(weight.numel() for weight in twin.parameters())
    computer = FunctionalGradientComputer(twin, Answers(), grad_dim=size, dtype=torch.float32, device="cpu")
    projector = BasicProjector(size, 1024, seed=0, proj_type=ProjectionType.rademacher, device="cpu", block_size=8)

    def work() -> None:
        projector.project(computer.compute_per_sample_grad((batch["input_ids"], batch["labels"])), model_id=0)

    return work


_PEERS = (
    (Contender("kronfluence, pairwise identity", "Gram of Linear layers", kronfluence), "kronfluence"),
    (Contender("Opacus, grad samples", "Gram, exact", opacus, gradients_held=1.2), "opacus"),
    (Contender("BackPACK, BatchGrad", "Gram of Linear layers", backpack, gradients_held=1.2), "backpack"),
    (
        Contender(
            "TRAK, vmap and dense projection", "sketch of 1024", trak, gradients_held=2.0, most_parameters=20_000_000
        ),
        "trak",
    ),
)
PEERS = tuple(contender for contender, package in _PEERS if importlib.util.find_spec(package))
NOT_INSTALLED = tuple(contender.name for contender, package in _PEERS if not importlib.util.find_spec(package))
