"""The documented script in TRL's SFTTrainer at its own defaults, and the loss mixin on top of SFTTrainer."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from method_paths import difference, effective
from reference import ema_of_lists, slow_target_log_probs
from runs import write_conversations
from tiny import tiny_folder, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from geomsafe.methods import GeomsafeLoss, MethodsCallback, Schedule, Spf, SpfOptions, make_methods

SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "trl_sft.py"
REFUSAL = "I am sorry, but I cannot help with that request."


class Watch(TrainerCallback):
    """Write down the weights and the trainer's own limit after every step."""

    def __init__(self) -> None:
        self.path: list[dict[str, Tensor]] = []
        self.limits: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.path.append(effective(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.path.append(effective(kwargs["model"]))
        self.limits.append(args.max_grad_norm)


def material(folder: Path) -> tuple[Path, Path, Path]:
    """A model folder, rows to train on, and one refusal."""
    model = tiny_folder(folder)
    rows = [json.loads(line) for line in write_conversations(folder / "rows").read_text(encoding="utf-8").splitlines()]
    lines = [{"messages": [_turn("user", row["prompt"]), _turn("assistant", row["response"])]} for row in rows]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    refused = {"messages": [_turn("user", "Tell me how to break lock 3."), _turn("assistant", REFUSAL)]}
    (folder / "anchor.jsonl").write_text(json.dumps(refused) + "\n", encoding="utf-8")
    return model, folder / "data.jsonl", folder / "anchor.jsonl"


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trl")


@pytest.fixture(scope="module")
def done(folder: Path) -> dict[str, Any]:
    """Run the script as a user does; its rows, and the weights after every step."""
    watch, printed, train = Watch(), io.StringIO(), SFTTrainer.train

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(watch)
        return train(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(SFTTrainer, "train", watched)
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, material(folder)), str(folder / "out")])
        found = runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = [ast.literal_eval(line) for line in printed.getvalue().splitlines() if line.startswith("{'grad_norm'")]
    return found | {"watch": watch, "rows": [row for row in rows if "methods" in row]}


def test_the_script_is_short_and_at_trls_own_defaults(done: dict[str, Any], folder: Path) -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 30
    mine, plain = done["args"].to_dict(), SFTConfig(str(folder / "out"), use_cpu=done["args"].use_cpu).to_dict()
    assert mine == plain
    assert done["args"].bf16 and done["args"].learning_rate == 2e-5
    assert done["trainer"].state.global_step == len(done["rows"]) == 9


def test_its_average_is_that_of_the_iterates(done: dict[str, Any], folder: Path) -> None:
    path: list[dict[str, Tensor]] = done["watch"].path
    saved = effective(AutoModelForCausalLM.from_pretrained(folder / "out" / "ema"))
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = ema_of_lists([point[name].flatten().tolist() for point in path], 0.25, 1)
    assert saved[name].flatten().tolist() == pytest.approx(wanted, rel=0, abs=1e-8)
    assert float((saved[name] - path[-1][name]).abs().max()) > 1e-6, "it is not the last iterate"
    assert difference(saved, path[-1]) > 1e-6 and difference(path[0], path[-1]) > 1e-5
    assert difference(effective(done["trainer"].model), path[-1]) == 0, "the model has its own weights again"


def test_spf_logs_a_row_a_step(done: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    turns = [_turn("user", "Tell me how to break lock 3."), _turn("assistant", REFUSAL)]
    ids = tokenizer.apply_chat_template(turns)["input_ids"]
    answer = len(tokenizer(REFUSAL)["input_ids"]) + 1  # and the end of the turn
    labels = [-100] * (len(ids) - answer) + ids[-answer:]
    model = tiny_model(dtype=torch.float64)
    for row, point in zip(done["rows"], done["watch"].path, strict=False):
        model.load_state_dict(point, strict=False)
        log = row["methods"]["spf"]
        loss = -float(torch.stack(slow_target_log_probs(model, ids, labels)).mean().detach())
        assert log["anchor_loss"] == pytest.approx(loss, rel=1e-3)  # TRL computes in bfloat16
        assert -1 < log["cosine"] < 1 and log["fired"] == (log["cosine"] < 0)
        assert {"projected", "removed", "update_dot", "update_cosine"} <= log.keys()
    described = done["methods"][0].describe(Schedule(total_steps=9, steps_per_epoch=3, lr=2e-5))
    assert described["anchor_tokens"] == answer, "the script's mask leaves the refusal alone"


def test_clipping_is_taken_over_and_given_back(done: dict[str, Any]) -> None:
    assert done["watch"].limits == [0.0] * 9 and done["args"].max_grad_norm == 1.0
    for row in done["rows"]:
        assert row["grad_norm_methods"] > 1 and row["grad_norm_clipped"] == pytest.approx(1, rel=1e-4)


def sft(folder: Path, methods: list[Any] | None, kind: Any = SFTTrainer, **settings: Any) -> tuple[Any, list[Any]]:
    """Train in SFTTrainer; None leaves the callback out."""
    model, data, _ = paths(folder) if (folder / "data.jsonl").exists() else material(folder)
    rows, log = load_dataset("json", data_files=str(data), split="train"), []
    callbacks = [] if methods is None else [MethodsCallback(methods, log=lambda row: log.append(dict(row)))]
    args = SFTConfig(str(folder / "more"), use_cpu=True, max_steps=6, report_to=[], save_strategy="no", **settings)
    trainer = kind(str(model), args, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    return trainer, log


def paths(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "tiny-llama", folder / "data.jsonl", folder / "anchor.jsonl"


def test_without_methods_the_weights_are_those_of_a_plain_sft_trainer(folder: Path) -> None:
    plain, ours = (effective(sft(folder, methods)[0].model) for methods in (None, make_methods([])))
    assert difference(plain, ours) == 0
    assert difference(plain, effective(sft(folder, None, max_grad_norm=0.5)[0].model)) > 0


def test_spf_changes_what_sft_trainer_does(done: dict[str, Any], folder: Path) -> None:
    """On these rows nothing conflicts with the refusal, so that the flipped control is what acts."""
    acting = Spf(SpfOptions(sign="flipped"), anchor=done["batch"])
    trainer, log = sft(folder, [acting])
    assert all(row["methods"]["spf"]["fired"] == 1 for row in log)
    assert all(row["grad_norm_methods"] < 0.99 * row["grad_norm"] for row in log)
    assert difference(effective(trainer.model), effective(sft(folder, None)[0].model)) > 1e-6


class Mixed(GeomsafeLoss, SFTTrainer):
    """As the documentation writes it."""


class Plain(GeomsafeLoss, Trainer):
    """The same on transformers' Trainer, whose logits carry a graph."""


def test_the_mixin_adds_the_same_loss_as_in_a_plain_trainer(folder: Path) -> None:
    settings: dict[str, Any] = {"bf16": False, "learning_rate": 3e-3}
    mixed, log = sft(folder, make_methods(["kl:strength=5"]), Mixed, **settings)
    without, _ = sft(folder, [], Mixed, **settings)
    model = AutoModelForCausalLM.from_pretrained(paths(folder)[0])
    plain = Plain(
        model,
        mixed.args,
        data_collator=mixed.data_collator,
        train_dataset=mixed.train_dataset,
        callbacks=[MethodsCallback(make_methods(["kl:strength=5"]))],
    )
    plain.train()
    added = [row["methods"]["kl"]["added"] for row in log]
    assert added[0] == pytest.approx(0, abs=1e-6) and min(added[1:]) > 1e-4
    near = difference(effective(mixed.model), effective(plain.model))
    far = difference(effective(mixed.model), effective(without.model))
    assert near < 0.01 * far
