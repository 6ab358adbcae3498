"""Block gradients equal a loop over single examples, and the model does not notice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gradient_cases import padded, some_examples, with_lora
from peft import LoraConfig, get_peft_model
from reference import Example, slow_block_gradients
from tiny import ARCHITECTURES, tiny_model

from geomsafe.errors import DataError, ModelError, TrainingError
from geomsafe.gradients import block_gradients, target_shapes
from geomsafe.models import parameter_names

BLOCKS = [0, 0, 0, 1, 1, 1, 1]


def in_batches(
    examples: list[Example], blocks: list[int], size: int, left: bool = False
) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
    batches, owners = [], []
    for block in sorted(set(blocks)):
        members = [example for example, owner in zip(examples, blocks, strict=True) if owner == block]
        for start in range(0, len(members), size):
            batches.append(padded(members[start : start + size], left))
            owners.append(block)
    return batches, owners


def largest_error(found: dict[str, torch.Tensor], wanted: list[dict[str, torch.Tensor]]) -> float:
    """Largest ||found - wanted|| / ||wanted|| over blocks and parameters; names must agree."""
    assert list(found) == list(wanted[0])
    errors = []
    for block, gradients in enumerate(wanted):
        for name, gradient in gradients.items():
            scale = max(float(gradient.norm()), 1e-6)
            errors.append(float((found[name][block].double() - gradient).norm()) / scale)
    return max(errors)


@pytest.mark.parametrize("size", [1, 2, 16])
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "mixtral"])
def test_equals_a_loop_over_examples(arch: str, size: int) -> None:
    model, examples = tiny_model(arch, dtype=torch.float64), some_examples()
    if arch == "mixtral":  # the fused expert kernel knows no float64
        model.set_experts_implementation("eager")
    wanted, tokens, losses = slow_block_gradients(model, examples, BLOCKS)
    found = block_gradients(model, *in_batches(examples, BLOCKS, size))
    # Norms and rotary embeddings work in float32 inside transformers, even in a float64 model.
    assert largest_error(found.gradients, wanted) < 2e-6
    assert found.tokens.tolist() == tokens
    assert found.example_losses.tolist() == pytest.approx(losses, rel=1e-6)
    assert found.loss == pytest.approx(sum(losses) / sum(tokens), rel=1e-6)


def test_unpadded_batch_is_exact_to_float64() -> None:
    """Same sequence of operations, so nothing but the order of sums differs (GPT-2: float64 throughout)."""
    model, examples = tiny_model("gpt2", dtype=torch.float64), some_examples(equal=True)
    wanted, _, _ = slow_block_gradients(model, examples, BLOCKS)
    found = block_gradients(model, *in_batches(examples, BLOCKS, 16))
    assert largest_error(found.gradients, wanted) < 1e-10


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_and_tied_embeddings(arch: str) -> None:
    model = tiny_model(arch, tie_word_embeddings=True)
    examples = some_examples()
    wanted, _, _ = slow_block_gradients(model, examples, BLOCKS)
    found = block_gradients(model, *in_batches(examples, BLOCKS, 3))
    assert not any("lm_head" in name for name in found.gradients), "a tied weight has its first name only"
    assert largest_error(found.gradients, wanted) < 2e-4
    assert all(gradient.dtype == torch.float32 for gradient in found.gradients.values())


def test_bfloat16_sums_in_float32() -> None:
    model, examples = tiny_model("llama", dtype=torch.bfloat16), some_examples()
    wanted, _, _ = slow_block_gradients(model, examples, BLOCKS)
    found = block_gradients(model, *in_batches(examples, BLOCKS, 2))
    assert {gradient.dtype for gradient in found.gradients.values()} == {torch.float32}
    for name, gradient in found.gradients.items():
        for block, reference in enumerate(wanted):
            cosine = torch.cosine_similarity(gradient[block].double().flatten(), reference[name].flatten(), dim=0)
            assert float(cosine) > 0.97, name


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_lora_gives_the_gradient_of_the_merged_weights(arch: str) -> None:
    """The reference knows no adapters: W + (alpha / r) B A in a plain model, differentiated there."""
    adapted = with_lora(tiny_model(arch, dtype=torch.float64))
    examples = some_examples()
    merged = copy.deepcopy(adapted).merge_and_unload()
    found = block_gradients(adapted, *in_batches(examples, BLOCKS, 3))
    for name, weight in merged.named_parameters():
        weight.requires_grad_(name in found.gradients)
    wanted, _, _ = slow_block_gradients(merged, examples, BLOCKS)
    by_name = [{name: block[name] for name in found.gradients} for block in wanted]
    assert largest_error(found.gradients, by_name) < 2e-6
    assert list(found.gradients) == parameter_names(adapted)
    assert set(found.gradients) <= {name for name, _ in merged.named_parameters()}
    assert not any("lora" in name or "base_layer" in name for name in found.gradients)


def test_lora_on_fused_experts_is_named_like_theta_0() -> None:
    """Adapters on expert weights lie one in the other; the gradient is that of the merged weights here too."""
    model = tiny_model("mixtral", dtype=torch.float64)
    model.set_experts_implementation("eager")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=experts)).eval()
    examples = some_examples()
    found = block_gradients(adapted, *in_batches(examples, BLOCKS, 3))
    plain = copy.deepcopy(adapted).merge_and_unload()
    for name, weight in plain.named_parameters():
        weight.requires_grad_(name in found.gradients)
    wanted, _, _ = slow_block_gradients(plain, examples, BLOCKS)
    assert list(found.gradients) == parameter_names(adapted) and len(found.gradients) == 6
    assert largest_error(found.gradients, [{name: block[name] for name in found.gradients} for block in wanted]) < 2e-6


def test_lora_on_a_tied_head_leaves_the_embedding_out() -> None:
    """The update dW of an adapted lm_head does not act on the embedding, though both share W."""
    tied = tiny_model("llama", dtype=torch.float64, tie_word_embeddings=True)
    untied = tiny_model("llama", dtype=torch.float64, tie_word_embeddings=False)
    untied.load_state_dict({**tied.state_dict(), "lm_head.weight": tied.model.embed_tokens.weight.detach().clone()})
    adapted = get_peft_model(tied, LoraConfig(r=2, target_modules=["lm_head"]))
    examples = some_examples()
    found = block_gradients(adapted, *in_batches(examples, BLOCKS, 4))
    wanted, _, _ = slow_block_gradients(untied, examples, BLOCKS)
    assert list(found.gradients) == ["lm_head.weight"]
    only_head = [{"lm_head.weight": block["lm_head.weight"]} for block in wanted]
    assert largest_error(found.gradients, only_head) < 2e-6
    assert adapted.base_model.model.lm_head.base_layer.weight is adapted.base_model.model.model.embed_tokens.weight


def test_frozen_parameters_are_left_out_and_a_choice_of_names_changes_nothing() -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    batches = in_batches(some_examples(), BLOCKS, 4)
    everything = block_gradients(model, *batches)
    assert "model.embed_tokens.weight" not in everything.gradients
    assert list(everything.gradients) == list(target_shapes(model))
    name = "model.layers.1.mlp.up_proj.weight"
    alone = block_gradients(model, *batches, names=[name])
    assert list(alone.gradients) == [name]
    assert torch.equal(alone.gradients[name], everything.gradients[name])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_left_padding_equals_right_padding(arch: str) -> None:
    model, examples = tiny_model(arch, dtype=torch.float64), some_examples()
    wanted, _, _ = slow_block_gradients(model, examples, BLOCKS)
    found = block_gradients(model, *in_batches(examples, BLOCKS, 4, left=True))
    assert largest_error(found.gradients, wanted) < 2e-6


# --- negative controls: the comparison can see these faults -----------------------------------------------------


def _error_with(change: Any, left: bool = False) -> float:
    model, examples = tiny_model("llama", dtype=torch.float64), some_examples()
    wanted, _, _ = slow_block_gradients(model, examples, BLOCKS)
    batches, owners = in_batches(examples, BLOCKS, 4, left)
    for batch in batches:
        change(batch)
    return largest_error(block_gradients(model, batches, owners).gradients, wanted)


def test_control_attention_mask_missing() -> None:
    assert _error_with(lambda batch: batch["attention_mask"].fill_(1), left=True) > 1e-2


def test_control_loss_on_prompt_tokens() -> None:
    def unmask(batch: dict[str, torch.Tensor]) -> None:
        batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)

    assert _error_with(unmask) > 1e-2


def test_control_loss_on_padding() -> None:
    def unmask(batch: dict[str, torch.Tensor]) -> None:
        batch["labels"] = torch.where(batch["attention_mask"] == 0, batch["input_ids"], batch["labels"])

    assert _error_with(unmask) > 1e-2


def test_control_dropout_left_on() -> None:
    model, examples = tiny_model("gpt2", dtype=torch.float64, resid_pdrop=0.3), some_examples()
    model.train()
    wanted, _, _ = slow_block_gradients(model, examples, BLOCKS)
    batches = in_batches(examples, BLOCKS, 4)
    assert largest_error(block_gradients(model, *batches).gradients, wanted) < 2e-6
    loss = model(**batches[0][0]).logits.log_softmax(-1).sum()
    assert not torch.equal(loss, model(**batches[0][0]).logits.log_softmax(-1).sum()), "this dropout is alive"


# --- the model is left exactly as found ---------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_model_is_left_exactly_as_found(lora: bool) -> None:
    model = tiny_model("gpt2", resid_pdrop=0.2, attn_pdrop=0.1)
    model = with_lora(model) if lora else model
    model.train()
    model.get_submodule("base_model.model.transformer.h.0" if lora else "transformer.h.0").eval()
    batches = in_batches(some_examples(), BLOCKS, 3)
    model(**batches[0][0]).loss.backward()  # gradients of a training step under way
    model.register_forward_hook(lambda *_: None)

    def state() -> list[Any]:
        parameters = [
            (name, weight, weight.data_ptr(), weight.detach().clone(), weight.requires_grad,
             None if weight.grad is None else weight.grad.clone())
            for name, weight in model.named_parameters()
        ]  # fmt: skip
        modules = [
            (name, m.training, len(m._forward_hooks), len(m._backward_hooks)) for name, m in model.named_modules()
        ]
        return [parameters, modules, torch.get_rng_state()]

    before = state()
    block_gradients(model, *batches)
    after = state()
    assert before[1] == after[1] and torch.equal(before[2], after[2])
    for old, new in zip(before[0], after[0], strict=True):
        assert old[0] == new[0] and old[1] is new[1] and old[2] == new[2] and old[4] == new[4]
        assert torch.equal(old[3], new[3])
        assert (old[5] is None and new[5] is None) or torch.equal(old[5], new[5])


def test_random_state_is_restored_even_where_eval_mode_draws() -> None:
    model = tiny_model("llama")
    drawn = []
    model.register_forward_hook(lambda *_: drawn.append(torch.rand(3)))
    before = torch.get_rng_state()
    block_gradients(model, *in_batches(some_examples(), BLOCKS, 3))
    assert drawn and torch.equal(before, torch.get_rng_state())


def test_model_is_restored_after_an_error() -> None:
    model = with_lora(tiny_model("llama")).train()
    before = dict(model.named_parameters())
    batches, owners = in_batches(some_examples(), BLOCKS, 3)
    batches[1]["labels"].fill_(-100)
    with pytest.raises(DataError, match="example 3 has no target token"):
        block_gradients(model, batches, owners)
    assert all(weight is before[name] for name, weight in model.named_parameters())
    assert model.training and not model.base_model.model.lm_head.weight.requires_grad


def test_two_calls_agree_bitwise() -> None:
    model = tiny_model("llama")
    batches = in_batches(some_examples(), BLOCKS, 3)
    first, second = block_gradients(model, *batches), block_gradients(model, *batches)
    assert all(torch.equal(first.gradients[name], second.gradients[name]) for name in first.gradients)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_name_the_cause() -> None:
    model = tiny_model("llama")
    batches, owners = in_batches(some_examples(), BLOCKS, 4)
    with pytest.raises(DataError, match="empty"):
        block_gradients(model, [], [])
    with pytest.raises(DataError, match=r"block\(s\) \[0\]"):
        block_gradients(model, batches[1:], [1] * (len(batches) - 1))
    with pytest.raises(ModelError, match="no.such"):
        block_gradients(model, batches, owners, names=["no.such"])
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="example 0: its loss is nan"):
        block_gradients(model, batches, owners)
    with pytest.raises(ModelError, match="all of its parameters are frozen"):
        block_gradients(model.requires_grad_(False), batches, owners)
