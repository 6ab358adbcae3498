"""Methods that add to the loss, against loops over single examples and dense matrices, ten steps in float64.

The reference replays the batches that the Trainer drew. Examples have different numbers of target tokens, so that a
mean over micro-batch means is not the mean over tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from method_paths import difference, effective, fit, start_model
from reference import alignment_map, penalised_by_hand
from runs import QUIET, tiny_run
from tiny import VOCABULARY, tiny_folder, tiny_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from geomsafe.errors import ConfigError, TrainingError
from geomsafe.methods import (
    Asft,
    AsftOptions,
    GeomsafeLoss,
    MethodsCallback,
    Origin,
    base_weights,
    make_method,
    make_methods,
)
from geomsafe.records import read_jsonl
from geomsafe.training import train

CLOSE = 1e-10


def uneven(count: int = 16) -> list[dict[str, Tensor]]:
    """Examples whose answers have between 2 and 9 tokens."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for index in range(count):
        ids = torch.randint(5, VOCABULARY, (12,), generator=generator)
        labels = ids.clone()
        labels[: 3 + (3 * index) % 8] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


class Double(Trainer):
    """The task's loss in float64: transformers' own is computed in float32, which Adam would show."""

    takes_count: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = self.takes_count

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        log_probs = outputs.logits[:, :-1].log_softmax(-1)[labels[:, 1:] != -100]
        targets = labels[:, 1:][labels[:, 1:] != -100]
        total = -log_probs[torch.arange(len(targets)), targets].sum()
        loss = total / (num_items_in_batch if self.takes_count else len(targets))
        return (loss, outputs) if return_outputs else loss


class Tape(Trainer):
    """Keep what the trainer was given."""

    tape: ClassVar[list[Any]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tape.clear()

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            self.tape.append(list(zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True)))
        return super().compute_loss(model, inputs, *args, **kwargs)


class Mixed(GeomsafeLoss, Trainer):
    """As a user would write it."""


class Counted(Tape, GeomsafeLoss, Double):
    """The same on top of the loss in float64."""


class Hidden(Double):
    """A trainer whose outputs have no logits."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        outputs.logits = None
        return (loss, outputs) if return_outputs else loss


class Fused(GeomsafeLoss, Hidden):
    """The mixin on top of it."""


class Detached(Double):
    """A trainer whose logits carry no graph, as TRL's SFTTrainer; counts how often it is asked for them."""

    asked: ClassVar[list[bool]] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.asked.append(return_outputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        outputs.logits = outputs.logits.detach()
        return (loss, outputs) if return_outputs else loss


class FusedDetached(GeomsafeLoss, Detached):
    """The mixin on top of it."""


class Uncounted(Counted):
    """A model that cannot be told the number of tokens: Trainer divides by the number of micro-batches."""

    takes_count: ClassVar[bool] = False


def tuned(folder: Path, methods: Any, model: Any, kind: Any = Counted, micro: int = 2, **settings: Any) -> Any:
    chosen = {"max_grad_norm": 0.0, "optim": "adamw_torch", "gradient_accumulation_steps": micro}
    return fit(folder, methods, model, kind=kind, data=uneven(), **(chosen | settings))


def taped(micro: int = 2) -> list[Any]:
    """Group the tape into steps."""
    return [Tape.tape[place : place + micro] for place in range(0, len(Tape.tape), micro)]


def base() -> dict[str, Tensor]:
    return base_weights(tiny_model(seed=5, dtype=torch.float64))


def dense_penalty(model: Any, options: AsftOptions) -> Tensor:
    """Strength * sum ||(I - C) s B A||_F^2 with everything formed."""
    total = torch.zeros((), dtype=torch.float64)
    theta_base = base()
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            name = path.removeprefix("base_model.model.") + ".weight"
            start = layer.base_layer.weight.detach()
            c = alignment_map(start, theta_base[name], options.projector, options.rank)
            moved = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            moved = moved * (3 if options.scaled else 1)  # alpha / r = 6 / 2
            total = total + ((moved - c @ moved) ** 2).sum()
    return options.strength * total


@pytest.mark.parametrize(
    "options",
    [
        AsftOptions(strength=30),
        AsftOptions(strength=30, projector="true", rank=6),
        AsftOptions(strength=5, scaled=True),
    ],
    ids=["released", "true", "scaled"],
)
def test_asft_equals_the_dense_penalty(tmp_path: Path, options: AsftOptions) -> None:
    done = tuned(tmp_path, [Asft(options, base=base())], start_model(lora=True))
    by_hand, without = start_model(lora=True), start_model(lora=True)
    penalised_by_hand(by_hand, None, taped(), 3e-3, penalty=lambda model: dense_penalty(model, options))
    penalised_by_hand(without, None, taped(), 3e-3)
    assert difference(done.path[-1], effective(by_hand)) < CLOSE
    assert difference(done.path[-1], effective(without)) > 1e-5
    last = dense_penalty(done.model, options)
    assert [row["methods"]["asft"]["added"] for row in done.log][0] == 0
    assert done.log[-1]["methods"]["asft"]["added"] == pytest.approx(float(last), rel=0.5)


def test_a_step_sees_the_penalty_once_whatever_the_accumulation(tmp_path: Path) -> None:
    paths = []
    for micro, size in ((1, 4), (4, 1)):
        options = AsftOptions(strength=30)
        model = start_model(lora=True)
        done = tuned(
            tmp_path / str(micro), [Asft(options, base=base())], model, micro=micro, per_device_train_batch_size=size
        )
        paths.append(done.path[-1])
    assert difference(*paths) < CLOSE


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("arch", "close"), [("gpt2", CLOSE), ("llama", 1e-6), ("gemma", 1e-6)])
def test_kl_equals_the_sum_over_the_vocabulary(tmp_path: Path, arch: str, close: float, lora: bool) -> None:
    # Llama's and Gemma's norms are computed in float32 whatever the weights, and Adam shows it.
    done = tuned(tmp_path, make_methods(["kl:strength=2"]), start_model(arch, lora))
    start = start_model(arch)
    by_hand, without = start_model(arch, lora), start_model(arch, lora)
    penalised_by_hand(by_hand, start, taped(), 3e-3, kl=2)
    penalised_by_hand(without, start, taped(), 3e-3)
    assert difference(done.path[-1], effective(by_hand)) < close
    assert difference(done.path[-1], effective(without)) > 10 * close
    added = [row["methods"]["kl"]["added"] for row in done.log]
    assert added[0] == pytest.approx(0, abs=1e-12) and added[-1] > 1e-6


def test_kl_forms_the_logits_where_the_trainer_does_not(tmp_path: Path) -> None:
    Detached.asked.clear()
    paths = [
        tuned(tmp_path / kind.__name__, ["kl:strength=2"], start_model("gpt2"), kind=kind, max_steps=4).path[-1]
        for kind in (Counted, Fused, FusedDetached)
    ]
    assert difference(paths[0], paths[1]) < CLOSE
    assert difference(paths[0], paths[2]) < CLOSE
    assert Detached.asked == [True] + [False] * 7, "logits without a graph are asked for once"


def test_of_logits_without_a_graph_kl_still_has_a_gradient() -> None:
    model, method = start_model(), make_method("kl:strength=2")
    method.origin = Origin(model)
    batch = {key: torch.stack([row[key] for row in uneven(3)]) for key in ("input_ids", "labels")}
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    outputs = model(input_ids=batch["input_ids"])
    seen = method.before_loss(model, batch)  # type: ignore[attr-defined]
    with_graph = method.term(model, batch, outputs, seen)  # type: ignore[attr-defined]
    outputs.logits = outputs.logits.detach()
    without = method.term(model, batch, outputs, seen)  # type: ignore[attr-defined]
    assert float(with_graph.value) == pytest.approx(float(without.value), rel=1e-12)
    weights = list(model.parameters())
    for one, other in zip(*(torch.autograd.grad(term.value, weights) for term in (with_graph, without)), strict=True):
        assert one.abs().max() > 0 and torch.allclose(one, other, rtol=1e-9, atol=1e-14)


def test_where_trainer_divides_by_micro_batches_so_does_the_term(tmp_path: Path) -> None:
    options = AsftOptions(strength=30)
    methods = [Asft(options, base=base()), make_method("kl:strength=2")]
    done = tuned(tmp_path, methods, start_model(lora=True), kind=Uncounted, max_steps=6)
    start, by_hand = start_model(), start_model(lora=True)
    settings: dict[str, Any] = {"kl": 2, "penalty": lambda model: dense_penalty(model, options)}
    penalised_by_hand(by_hand, start, taped(), 3e-3, by_micro_batch=True, **settings)
    assert difference(done.path[-1], effective(by_hand)) < 1e-8
    other = start_model(lora=True)
    penalised_by_hand(other, start, taped(), 3e-3, **settings)
    assert difference(done.path[-1], effective(other)) > 1e-6


def test_without_loss_methods_the_mixin_changes_no_bit(tmp_path: Path) -> None:
    plain = tuned(tmp_path / "plain", ["ema"], start_model(), kind=Trainer)
    mixed = tuned(tmp_path / "mixed", ["ema"], start_model(), kind=Mixed)
    assert difference(plain.path[-1], mixed.path[-1]) == 0


def test_a_strength_of_zero_changes_next_to_nothing(tmp_path: Path) -> None:
    plain = tuned(tmp_path / "plain", [], start_model(lora=True))
    zero = tuned(tmp_path / "zero", make_methods(["kl:strength=0"]), start_model(lora=True))
    assert difference(plain.path[-1], zero.path[-1]) == 0


def test_theta_0_is_seen_without_dropout_and_leaves_no_trace(tmp_path: Path) -> None:
    model = start_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    method = make_method("kl")
    method.origin = Origin(model)
    model.train()
    wanted = start_model("gpt2")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    storage = [weight.data_ptr() for weight in model.parameters()]
    random_state = torch.get_rng_state()
    batch = {key: torch.stack([row[key] for row in uneven(3)]) for key in ("input_ids", "labels")}
    seen = method.before_loss(model, batch)  # type: ignore[attr-defined]
    logits = wanted(input_ids=batch["input_ids"]).logits[:, :-1][batch["labels"][:, 1:] != -100]
    assert torch.allclose(seen, logits.log_softmax(-1), atol=1e-12)
    assert model.training and torch.equal(random_state, torch.get_rng_state())
    assert storage == [weight.data_ptr() for weight in model.parameters()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_that_is_continued_has_its_own_theta_0() -> None:
    model = start_model(lora=True)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    batch = {key: torch.stack([row[key] for row in uneven(3)]) for key in ("input_ids", "labels")}
    method = make_method("kl")
    method.origin = Origin(model)
    with torch.no_grad():
        wanted = model(input_ids=batch["input_ids"]).logits[:, :-1][batch["labels"][:, 1:] != -100].log_softmax(-1)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(0.1)
        moved = model(input_ids=batch["input_ids"]).logits[:, :-1][batch["labels"][:, 1:] != -100].log_softmax(-1)
    seen = method.before_loss(model, batch)  # type: ignore[attr-defined]
    assert torch.allclose(seen, wanted, atol=1e-10)
    assert not torch.allclose(moved, wanted, atol=1e-3)


def test_evaluation_is_the_trainers_own(tmp_path: Path) -> None:
    losses = []
    for specs in ([], ["kl:strength=100"]):
        model = start_model()
        args = TrainingArguments(str(tmp_path), max_steps=1, learning_rate=0.0, report_to=[], use_cpu=True)
        callback = MethodsCallback(make_methods(specs))
        trainer = Mixed(model, args, train_dataset=uneven(), eval_dataset=uneven(4), callbacks=[callback])
        trainer.train()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_a_trainer_that_does_not_ask_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"method kl acts on the loss.*class MyTrainer\(GeomsafeLoss, Trainer\)"):
        tuned(tmp_path, make_methods(["kl"]), start_model(), kind=Trainer)


def test_a_resumed_trainer_has_the_same_bits(tmp_path: Path) -> None:
    found = []
    for resume in (None, str(tmp_path / "checkpoint-5")):
        methods = [Asft(AsftOptions(strength=30), base=base()), make_method("kl:strength=2")]
        done = tuned(tmp_path, methods, start_model(lora=True), resume=resume, save_steps=5, save_strategy="steps")
        found.append(done.path[-1])
    assert len(done.path) == 5
    assert difference(*found) == 0
    found = []
    for resume in (None, str(tmp_path / "full" / "checkpoint-5")):
        done = tuned(
            tmp_path / "full", ["kl:strength=2"], start_model(), resume=resume, save_steps=5, save_strategy="steps"
        )
        found.append(done.path[-1])
    assert difference(*found) == 0


def test_what_asft_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="all weights are trained here: give --lora"):
        tuned(tmp_path, [Asft(base=base())], start_model())
    with pytest.raises(ConfigError, match="needs theta_base"):
        tuned(tmp_path, [Asft()], start_model(lora=True))
    with pytest.raises(ConfigError, match="rank= belongs to projector=true"):
        make_method("asft:rank=3")


def test_a_run_of_geomsafe_has_both(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "base", seed=9)
    settings = {"base_model": str(tmp_path / "base" / "tiny-llama"), "lora": {"rank": 2}, "accumulation": 2}
    run = train(tiny_run(tmp_path, method=["asft", "kl", "ema"], max_steps=3, **settings), console=QUIET)
    rows = list(read_jsonl(run / "steps.jsonl"))
    assert all({"asft", "kl", "ema"} == set(row["methods"]) for row in rows)
    assert rows[-1]["methods"]["kl"]["added"] > 0
