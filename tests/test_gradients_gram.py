"""The Gram matrix of single examples equals that of a loop, on every architecture, and can fail to.

Errors are |K_ij - K*_ij| / sqrt(K*_ii K*_jj), the largest over parameters and pairs. `SAME` holds where the reference
ran the same forward pass; `OTHER` across sequences of operations (padding, batch splits), because norms and rotary
embeddings work in float32 inside transformers even in a float64 model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_cases import lively_model, merged, padded, shared_model, shared_rows, some_examples, with_lora
from reference import gram_reference, preconditioned_gram_reference, same_pass_gradients, slow_example_gradients
from tiny import GRADIENT_ARCHITECTURES
from torch import Tensor

from geomsafe.gradients import Gram, gradient_gram
from geomsafe.gradients.storage import Piece, Setting
from geomsafe.gradients.uses import Outer, Rows

SAME = 1e-9
OTHER = 1e-6
FLOAT32_GAINS = ("gemma", "gemma2")  # multiply by 1 + w in float32, so autograd sums these gradients in float32
GEMMA2_LEFT = ("gemma2", "left")
# Gemma-2's eager attention turns a float64 mask into -inf and thus rows of padding into NaN; see test_float32.
PADDED = [(arch, side) for arch in GRADIENT_ARCHITECTURES for side in ("right", "left") if (arch, side) != GEMMA2_LEFT]
TOKENS = [sum(label != -100 for label in labels) for _, labels in some_examples()]


def gram_error(found: Any, wanted: dict[str, Tensor]) -> float:
    """Largest |K - K*| / sqrt(K*_ii K*_jj); the names must agree and be in the model's order."""
    assert list(found) == list(wanted)
    floor = 1e-12 * max(float(gram.diagonal().max()) for gram in wanted.values())
    errors = []
    for name, gram in wanted.items():
        assert found[name].dtype == torch.float64 and found[name].device.type == "cpu"
        norms = gram.diagonal().clamp(min=floor).sqrt()
        errors.append(float(((found[name] - gram).abs() / (norms[:, None] * norms)).max()))
    return max(errors)


# --- against the loop --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "side"), PADDED)
def test_equals_a_loop_over_unpadded_examples(arch: str, side: str) -> None:
    found = gradient_gram(shared_model(arch), padded(some_examples(), left=side == "left"), reduction="sum")
    assert gram_error(found, gram_reference(shared_rows(arch))) < OTHER
    assert not found.slow, "every weight of these architectures has a fast rule"
    assert list(found.routes) == list(found)


@pytest.mark.parametrize(("arch", "side"), PADDED)
def test_equals_one_backward_pass_an_example_to_rounding(arch: str, side: str) -> None:
    model, batch = shared_model(arch), padded(some_examples(), left=side == "left")
    wanted = gram_reference(same_pass_gradients(model, batch))
    found = gradient_gram(model, batch, reduction="sum", dtype=torch.float64)
    assert gram_error(found, wanted) < OTHER
    exact = {name: gram for name, gram in wanted.items() if not (arch in FLOAT32_GAINS and "norm" in name)}
    assert gram_error({name: found[name] for name in exact}, exact) < SAME


@pytest.mark.parametrize(("arch", "reduction"), [("llama", "sum"), ("llama", "mean"), ("qwen2", "sum")])
def test_is_exactly_symmetric(arch: str, reduction: str) -> None:
    found = gradient_gram(shared_model(arch), padded(some_examples()), reduction=reduction)
    assert all(torch.equal(gram, gram.T) for gram in found.values())


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral"])
def test_unpadded_batch(arch: str) -> None:
    model, examples = shared_model(arch), some_examples(equal=True)
    found = gradient_gram(model, padded(examples), reduction="sum")
    wanted = gram_reference(slow_example_gradients(model, examples))
    assert gram_error(found, wanted) < (SAME if arch == "gpt2" else OTHER)  # GPT-2 is float64 throughout


def test_long_answers_and_all_tokens_as_targets() -> None:
    """Another shape regime: more tokens than width, so that another route is the cheaper one."""
    model = shared_model("llama")
    generator = torch.Generator().manual_seed(3)
    examples = [
        (ids, list(ids))
        for ids in (torch.randint(5, 384, (length,), generator=generator).tolist() for length in (90, 75, 120))
    ]
    found = gradient_gram(model, padded(examples), reduction="sum")
    assert gram_error(found, gram_reference(slow_example_gradients(model, examples))) < OTHER


def test_example_of_one_target_and_one_example() -> None:
    model, examples = shared_model("llama"), some_examples(3)
    ids, labels = examples[1]
    examples[1] = (ids, [-100] * (len(ids) - 1) + labels[-1:])
    wanted = gram_reference(slow_example_gradients(model, examples))
    assert gram_error(gradient_gram(model, padded(examples), reduction="sum"), wanted) < OTHER
    alone = gradient_gram(model, padded(examples[1:2]), reduction="sum")
    assert gram_error(alone, {name: gram[1:2, 1:2] for name, gram in wanted.items()}) < OTHER
    assert alone.tokens.tolist() == [1]


def test_label_on_the_first_token_is_no_target() -> None:
    """Nothing predicts the first token: its label counts neither as a loss nor as a token."""
    model, examples = shared_model("llama"), some_examples(3)
    marked = [(ids, [ids[0], *labels[1:]]) for ids, labels in examples]
    first, second = gradient_gram(model, padded(examples)), gradient_gram(model, padded(marked))
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.total(), second.total())


# --- reductions and what comes with the matrices -------------------------------------------------------------------


def test_reductions_losses_and_tokens() -> None:
    model, examples = shared_model("qwen2"), some_examples()
    rows, tokens = shared_rows("qwen2"), torch.tensor(TOKENS)
    summed, mean = (gradient_gram(model, padded(examples), reduction=how) for how in ("sum", "mean"))
    by_default = gradient_gram(model, padded(examples))
    assert mean.tokens.dtype == torch.int64 and mean.tokens.tolist() == TOKENS
    wanted = gram_reference({name: row / tokens.view(-1, *[1] * (row.dim() - 1)) for name, row in rows.items()})
    assert gram_error(mean, wanted) < OTHER
    assert gram_error(mean.with_reduction("sum"), gram_reference(rows)) < OTHER
    assert gram_error(summed.with_reduction("mean"), wanted) < OTHER
    assert gram_error(by_default, dict(mean)) == 0
    total = sum(wanted.values())
    torch.testing.assert_close(mean.total(), total, rtol=1e-6, atol=1e-6 * float(total.max()))
    for gram in (summed, mean):  # losses are token sums whatever the reduction
        assert gram.losses.dtype == torch.float64
        for row, (ids, labels) in enumerate(examples):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].detach()
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum")
            assert float(gram.losses[row]) == pytest.approx(float(loss), rel=1e-6)


def test_preconditioned_gram() -> None:
    model = shared_model("qwen2_moe")
    generator = torch.Generator().manual_seed(5)
    rows = shared_rows("qwen2_moe")
    precondition = {name: torch.rand(row.shape[1:], generator=generator).double() ** 4 for name, row in rows.items()}
    found = gradient_gram(model, padded(some_examples()), reduction="sum", precondition=precondition)
    wanted = preconditioned_gram_reference(rows, precondition)
    assert gram_error(found, wanted) < OTHER
    assert gram_error(gradient_gram(model, padded(some_examples()), reduction="sum"), wanted) > 0.1


# --- splits, order, storage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen2_moe"])
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("budget", ["1MiB", "200KiB"])
def test_pieces_equal_the_whole(arch: str, where: str, budget: str, tmp_path: Path) -> None:
    model, batch = shared_model(arch), padded(some_examples())
    storage = tmp_path if where == "disk" else None
    whole = gradient_gram(model, batch, reduction="sum")
    pieces = gradient_gram(model, batch, reduction="sum", memory_budget=budget, storage=storage)
    assert gram_error(pieces, dict(whole)) < OTHER
    assert torch.equal(whole.tokens, pieces.tokens)
    assert not [*tmp_path.rglob("*")], "what was kept on disk is gone afterwards"


@pytest.mark.parametrize("arch", ["gpt2", "mixtral"])
def test_order_of_examples_only_permutes(arch: str) -> None:
    examples, order = some_examples(), [3, 0, 6, 2, 5, 1, 4]
    found = gradient_gram(shared_model(arch), padded([examples[i] for i in order]), reduction="sum")
    wanted = {name: gram[order][:, order] for name, gram in gram_reference(shared_rows(arch)).items()}
    assert gram_error(found, wanted) < OTHER


def test_parts_of_a_set_agree_with_the_whole() -> None:
    model, examples = shared_model("gemma2"), some_examples()
    whole, part = gradient_gram(model, padded(examples)), gradient_gram(model, padded(examples[2:5]))
    assert gram_error(part, {name: gram[2:5, 2:5] for name, gram in whole.items()}) < OTHER


def test_two_calls_agree_bitwise() -> None:
    model, batch = shared_model("llama"), padded(some_examples())
    first, second = gradient_gram(model, batch), gradient_gram(model, batch)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- number formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", GRADIENT_ARCHITECTURES)
def test_float32(arch: str) -> None:
    """Against the float32 model's own gradients, one backward pass an example: 1e-5 of the norms."""
    model, batch = lively_model(arch, torch.float32), padded(some_examples(), left=True)
    wanted = gram_reference(same_pass_gradients(model, batch))
    assert gram_error(gradient_gram(model, batch, reduction="sum"), wanted) < 1e-5


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma"])
def test_bfloat16(arch: str) -> None:
    """Autograd rounds every entry of a gradient to 8 bits, products accumulated in float32 do not: 2 % of the norms."""
    model, batch = lively_model(arch, torch.bfloat16), padded(some_examples())
    wanted = gram_reference(same_pass_gradients(model, batch))
    assert gram_error(gradient_gram(model, batch, reduction="sum"), wanted) < 2e-2


# --- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_lora_gives_the_gram_of_the_merged_weights(arch: str) -> None:
    adapted = with_lora(lively_model(arch))
    found = gradient_gram(adapted, padded(some_examples()), reduction="sum")
    assert not any("lora" in name or "base_layer" in name or "base_model" in name for name in found)
    wanted = gram_reference(slow_example_gradients(merged(adapted, list(found)), some_examples()))
    assert gram_error(found, wanted) < OTHER


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"use_rslora": True, "lora_dropout": 0.5},
        {"target_modules": ["embed_tokens", "v_proj"], "layers_to_transform": [1]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_kinds_of_lora(options: dict[str, Any]) -> None:
    adapted = with_lora(lively_model("qwen2", tie_word_embeddings=False), **options).train()
    found = gradient_gram(adapted, padded(some_examples()), reduction="sum")
    wanted = gram_reference(slow_example_gradients(merged(adapted, list(found)), some_examples()))
    assert gram_error(found, {name: wanted[name] for name in found}) < OTHER


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_lora_factors(arch: str) -> None:
    """`parameters="factors"`: the gradients of A and B themselves."""
    adapted = with_lora(lively_model(arch))
    found = gradient_gram(adapted, padded(some_examples()), reduction="sum", parameters="factors")
    rows = slow_example_gradients(adapted, some_examples())
    assert len(found) == len(rows) and all("lora_" in name for name in found)
    wanted = dict(zip(found, gram_reference(rows).values(), strict=True))  # names differ by peft's prefixes
    assert gram_error(found, wanted) < OTHER
    for name, original in zip(found, rows, strict=True):
        assert original.split("lora_")[1][0] == name.split("lora_")[1][0]


def test_lora_on_fused_experts() -> None:
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapted = with_lora(lively_model("mixtral"), target_modules=["q_proj"], target_parameters=experts)
    found = gradient_gram(adapted, padded(some_examples()), reduction="sum")
    wanted = gram_reference(slow_example_gradients(merged(adapted, list(found)), some_examples()))
    assert len(found) == 6 and gram_error(found, {name: wanted[name] for name in found}) < OTHER


def test_lora_on_a_tied_head_leaves_the_embedding_out() -> None:
    adapted = with_lora(lively_model("qwen2"), target_modules=["lm_head"])
    plain = copy.deepcopy(adapted.base_model.model)
    untied = lively_model("qwen2", tie_word_embeddings=False)
    update = adapted.base_model.model.lm_head.get_delta_weight("default")
    untied.load_state_dict(lively_model("qwen2").state_dict(), strict=False)
    with torch.no_grad():
        untied.lm_head.weight.copy_(plain.lm_head.base_layer.weight + update)
    found = gradient_gram(adapted, padded(some_examples()), reduction="sum")
    rows = slow_example_gradients(untied, some_examples(), names=["lm_head.weight"])
    assert gram_error(found, gram_reference(rows)) < OTHER


# --- which parameters -----------------------------------------------------------------------------------------------


def test_a_choice_of_names_changes_nothing() -> None:
    model, batch = shared_model("llama"), padded(some_examples())
    chosen = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    everything, some = gradient_gram(model, batch), gradient_gram(model, batch, parameters=chosen)
    assert gram_error(some, {name: everything[name] for name in everything if name in chosen}) < SAME


def test_frozen_parameters_are_left_out_and_can_be_asked_for() -> None:
    model = lively_model("llama")
    frozen = "model.layers.0.self_attn.k_proj.weight"
    model.get_parameter(frozen).requires_grad_(False)
    model.model.embed_tokens.weight.requires_grad_(False)
    batch, wanted = padded(some_examples()), gram_reference(shared_rows("llama"))
    found = gradient_gram(model, batch, reduction="sum")
    assert frozen not in found and "model.embed_tokens.weight" not in found and len(found) == len(wanted) - 2
    assert gram_error(gradient_gram(model, batch, reduction="sum", parameters="all"), wanted) < OTHER
    alone = gradient_gram(model, batch, reduction="sum", parameters=[frozen])
    assert gram_error(alone, {frozen: wanted[frozen]}) < OTHER
    assert not model.get_parameter(frozen).requires_grad
    everything_frozen = lively_model("llama").requires_grad_(False)
    asked = gradient_gram(everything_frozen, batch, reduction="sum", parameters="all")
    assert gram_error(asked, wanted) < OTHER


# --- negative controls: the comparison can see these faults --------------------------------------------------------


def test_control_attention_mask_missing() -> None:
    batch = padded(some_examples(), left=True)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    found = gradient_gram(shared_model("llama"), batch, reduction="sum")
    assert gram_error(found, gram_reference(shared_rows("llama"))) > 1e-2


def test_control_dropout_left_on() -> None:
    model = lively_model("gpt2", resid_pdrop=0.3).train()
    noisy = copy.deepcopy(model)
    noisy.eval = lambda: noisy  # the reference cannot switch its dropout off
    wanted = gram_reference(slow_example_gradients(model, some_examples()))
    assert gram_error(gradient_gram(model, padded(some_examples()), reduction="sum"), wanted) < OTHER
    ids = torch.tensor([some_examples()[0][0]])
    assert not torch.equal(noisy(ids).logits, noisy(ids).logits), "this dropout is alive"
    with torch.random.fork_rng(devices=[]):
        rows = [
            torch.autograd.grad(noisy(torch.tensor([ids]), labels=torch.tensor([labels])).loss, noisy.lm_head.weight)[0]
            * TOKENS[row]
            for row, (ids, labels) in enumerate(some_examples())
        ]
    found = {"transformer.wte.weight": gradient_gram(model, padded(some_examples()), reduction="sum")}
    noisy_gram = gram_reference({"transformer.wte.weight": torch.stack(rows)})
    assert gram_error({name: gram[name] for name, gram in found.items()}, noisy_gram) > 1e-2


def test_control_examples_shuffled_in_one_set() -> None:
    examples = some_examples()
    shuffled = [*examples[:4], examples[5], examples[6], examples[4]]
    found = gradient_gram(shared_model("llama"), padded(shuffled), reduction="sum")
    wanted = gram_reference(shared_rows("llama"))
    assert gram_error(found, wanted) > 1e-2
    assert gram_error({n: g[:4, :4] for n, g in found.items()}, {n: g[:4, :4] for n, g in wanted.items()}) < OTHER


def test_control_cross_term_of_tied_weights_left_out() -> None:
    """Input and output use of one weight measured apart: their sum misses the products between the uses."""
    tied = shared_model("qwen2")
    untied = lively_model("qwen2", tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    parts = gradient_gram(untied, padded(some_examples()), reduction="sum")
    embedding = "model.embed_tokens.weight"
    without_cross = {embedding: parts[embedding] + parts["lm_head.weight"]}
    wanted = gram_reference({embedding: shared_rows("qwen2")[embedding]})
    assert gram_error(without_cross, wanted) > 1e-3
    found = gradient_gram(tied, padded(some_examples()), reduction="sum", parameters=[embedding])
    assert gram_error(found, wanted) < OTHER


def test_products_of_one_pass_are_not_taken_for_those_of_another() -> None:
    """Memory that a pass frees is used again: the next one's inputs have the same address and shape."""
    generator = torch.Generator().manual_seed(0)
    gram = Gram()
    shapes = {"weight": torch.Size([6, 5])}
    gram.begin(Setting(shapes, torch.ones(4, dtype=torch.int64), "sum", torch.float64, 2, torch.device("cpu")))
    wanted = torch.zeros((4, 4), dtype=torch.float64)
    for places in ([0, 1], [2, 3]):
        left, right = (torch.randn((2, width), generator=generator, dtype=torch.float64) for width in (6, 5))
        use = Outer(Rows(torch.arange(2), 2), left, right, output=0, shared="an address")
        gram.take(Piece("weight", [use], shapes["weight"], torch.tensor(places)))
        flat = torch.einsum("ia,ib->iab", left, right).flatten(start_dim=1)
        wanted[places[0] : places[1] + 1, places[0] : places[1] + 1] = flat @ flat.T
    torch.testing.assert_close(gram.result(torch.zeros(4), [])["weight"], wanted)
