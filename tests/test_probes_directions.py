"""Refusal directions and steering against loops over single prompts and against edited weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import orthogonalised, slow_streams
from sklearn.metrics import roc_auc_score
from tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

from geomsafe.data import Prompt, prompt_id, prompt_ids
from geomsafe.errors import ModelError
from geomsafe.evaluation import generate_greedy
from geomsafe.models.blocks import decoder_blocks, writers
from geomsafe.probes.directions import ContrastSets, Directions, contrast_sets, direction_sites, directions_of
from geomsafe.probes.residuals import post_instruction_tokens, residuals
from geomsafe.probes.steering import ablated, added

TOLERANCE = {"gpt2": 1e-10}
"""RMS norms are taken in float32, whatever the weights are; GPT-2's are not."""


def prompts(kind: str, count: int = 24) -> list[Prompt]:
    verbs = ("break", "burn", "hide") if kind == "harmful" else ("bake", "count", "paint the old green")
    texts = [f"How do I {verbs[index % 3]} {kind} number {index // 3}?" for index in range(count)]
    return [Prompt(prompt_id(text), text, None, None, f"{kind}-{i // 2}", {}) for i, text in enumerate(texts)]


def sets_of() -> ContrastSets:
    found = contrast_sets(prompts("harmful"), prompts("harmless"), tiny_tokenizer())
    assert found is not None
    return found


def close(arch: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    tolerance = TOLERANCE.get(arch, 1e-5)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "gemma2", "phi3", "mixtral"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_streams_equal_one_prompt_at_a_time(arch: str, batch_size: int) -> None:
    """Whatever the batch, for prompts of different lengths; hooks and flags are gone afterwards."""
    # transformers leaves hooks of its own on a model that was asked for hidden states.
    model, slow = (tiny_model(arch, dtype=torch.float64) for _ in range(2))
    if arch == "mixtral":
        for one in (model, slow):
            one.set_experts_implementation("eager")
    ids = [[7, 8, 9, 10, 11][: 3 + index % 3] + [20 + index, 5] for index in range(6)]
    model.train()
    seen = []
    for rows, streams in residuals(model, ids, 2, batch_size):
        seen += rows
        for row, stream in zip(rows, streams, strict=True):
            close(arch, stream, slow_streams(slow, ids[row], 2))
    assert sorted(seen) == list(range(6)) and model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_wrong_position_shows() -> None:
    """Negative control: the stream one token earlier is another one."""
    model = tiny_model("gpt2", dtype=torch.float64)
    ((_, streams),) = residuals(model, [[7, 8, 9, 10]], 1, 1)
    assert not torch.allclose(streams[0], slow_streams(model, [7, 8, 9, 10], 2)[:, :1], rtol=1e-3)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_direction_is_the_difference_of_float64_means(arch: str) -> None:
    model, sets = tiny_model(arch, dtype=torch.float64), sets_of()
    found = directions_of(model, sets, 5)
    count = len(sets.ending)

    def mean(ids: list[list[int]]) -> torch.Tensor:
        return torch.stack([slow_streams(model, one, count) for one in ids]).mean(dim=0)

    close(arch, found.refusal, mean(sets.harmful) - mean(sets.harmless))
    close(arch, found.null, mean(sets.halves[0]) - mean(sets.halves[1]))
    for other in (1, 24):
        close(arch, directions_of(model, sets, other).refusal, found.refusal)


def test_what_is_rounding_alone_is_no_direction() -> None:
    """Before the first block all prompts end with equal tokens: the difference is exactly zero there."""
    model, sets = tiny_model("llama"), sets_of()
    found = directions_of(model, sets, 4)
    assert not found.refusal[0].any() and bool(found.refusal[1:].any(dim=-1).all())
    first, *_, last = direction_sites(model, sets, found, found, 4)
    assert (first.layer, first.norm, first.auroc, first.cosine, first.harmful) == (0, 0.0, None, None, None)
    assert (last.layer, last.position) == (2, -1)


def test_sites_equal_scikit_learn_on_single_prompts() -> None:
    start, model, sets = tiny_model("gpt2", 0), tiny_model("gpt2", 1), sets_of()
    start, model = start.double(), model.double()
    origin, found = directions_of(start, sets, 4), directions_of(model, sets, 4)
    sites = direction_sites(model, sets, found, origin, 4)
    positions = len(sets.ending)
    assert len(sites) == 3 * positions
    asked = [*sets.harmful_held_out, *sets.harmless_held_out]
    labels = [1] * len(sets.harmful_held_out) + [0] * len(sets.harmless_held_out)
    streams = torch.stack([slow_streams(model, one, positions) for one in asked])
    for site in sites:
        at = (site.layer, site.position + positions)
        here = streams[:, site.layer, at[1]]
        for value, ruler in (
            (site.auroc, found.refusal[at]),
            (site.null_auroc, found.null[at]),
            (site.start_auroc, origin.refusal[at]),
        ):
            assert value == pytest.approx(roc_auc_score(labels, here @ ruler), abs=1e-12)
        assert site.norm == pytest.approx(float(found.refusal[at].norm()), rel=1e-12)
        unit = origin.refusal[at] / origin.refusal[at].norm()
        assert site.harmful == pytest.approx(float((here[: sum(labels)] @ unit).mean()), abs=1e-9)
        assert site.harmless == pytest.approx(float((here[sum(labels) :] @ unit).mean()), abs=1e-9)
        wanted = torch.nn.functional.cosine_similarity(found.refusal[at], origin.refusal[at], dim=0)
        assert site.cosine == pytest.approx(float(wanted), abs=1e-12)
        assert site.random_low < 0.5 < site.random_high
    same = direction_sites(start, sets, origin, origin, 4)
    assert all(site.cosine == pytest.approx(1.0, abs=1e-12) and site.auroc == site.start_auroc for site in same)


def test_clusters_are_on_one_side_and_the_order_of_prompts_does_not_matter() -> None:
    tokenizer, sets = tiny_tokenizer(), sets_of()
    cluster = {
        tuple(prompt_ids(one.text, tokenizer)): one.cluster for kind in ("harmful", "harmless") for one in prompts(kind)
    }
    sides = [
        {cluster[tuple(ids)] for ids in part}
        for part in (sets.harmful, sets.harmful_held_out, sets.harmless, sets.harmless_held_out, *sets.halves)
    ]
    assert not sides[0] & sides[1] and not sides[2] & sides[3] and not sides[4] & sides[5]
    assert sides[4] | sides[5] == sides[2]
    turned = contrast_sets(prompts("harmful")[::-1], prompts("harmless")[::-1], tokenizer)
    assert turned is not None and sorted(turned.harmful) == sorted(sets.harmful)
    assert contrast_sets(prompts("harmful")[:14], prompts("harmless"), tokenizer) is None, "7 clusters are too few"


def test_the_ending_is_what_the_template_writes() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(post_instruction_tokens(tokenizer)) == "<|end|><|assistant|>"
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m['content'] }}{% endfor %}"
    assert len(post_instruction_tokens(tokenizer)) == 1, "the last token stands in"


def steered(model: Any, direction: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), ablated(model, direction):
        return torch.as_tensor(model(input_ids=ids).logits)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma", "gpt2", "qwen3"])
def test_ablation_equals_orthogonal_weights(arch: str) -> None:
    overrides = {"tie_word_embeddings": False}
    model = tiny_model(arch, dtype=torch.float64, **overrides)
    with torch.no_grad():  # biases, zero at the start, write too
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(generator=torch.Generator().manual_seed(1))
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[7, 8, 9, 10, 11, 12], [30, 31, 32, 33, 34, 35]])
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = steered(model, direction, ids)
    with torch.no_grad():
        plain, wanted = model(input_ids=ids).logits, orthogonalised(model, direction)(input_ids=ids).logits
    close(arch, found, wanted)
    assert not torch.allclose(plain, wanted, rtol=1e-3), "the direction matters"
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    close(arch, steered(model, -7.0 * direction, ids), found)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "mixtral"])
def test_nothing_of_the_direction_is_left_in_the_stream(arch: str) -> None:
    model = tiny_model(arch, dtype=torch.float64)
    if arch == "mixtral":
        model.set_experts_implementation("eager")
    direction = torch.ones(32, dtype=torch.float64) / 32**0.5
    ids = [[7, 8, 9, 10, 11]]
    with ablated(model, direction):
        ((_, streams),) = residuals(model, ids, 5, 1)
    # The first entry is read before the hooks of the first block have acted.
    assert float((streams[:, 1:] @ direction).abs().max()) < 1e-7
    ((_, streams),) = residuals(model, ids, 5, 1)
    assert float((streams[:, 1:] @ direction).abs().max()) > 1e-3
    assert all(len(writers(block)) == 2 for block in decoder_blocks(model))


def test_addition_equals_a_longer_embedding_and_reaches_generation() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        wanted = model(inputs_embeds=model.get_input_embeddings()(ids) + 3.0 * direction).logits
        with added(model, direction, 0, 3.0):
            found = model(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, model(input_ids=ids, use_cache=False).logits)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    tokenizer = tiny_tokenizer()
    plain = generate_greedy(model, tokenizer, ids.tolist(), 6, 1)
    with added(model, 50 * direction, 1):
        moved = generate_greedy(model, tokenizer, ids.tolist(), 6, 1)
    with ablated(model, direction):
        cut = generate_greedy(model, tokenizer, ids.tolist(), 6, 1)
    slow = generate_greedy(orthogonalised(model, direction), tokenizer, ids.tolist(), 6, 1)
    assert moved != plain and cut == slow
    assert generate_greedy(model, tokenizer, ids.tolist(), 6, 1) == plain


def test_hooks_go_when_the_body_fails_and_errors_name_the_cause() -> None:
    model = tiny_model("llama")
    direction = torch.ones(32)
    for steer in (ablated(model, direction), added(model, direction, 1)):
        with pytest.raises(KeyError), steer:
            raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ModelError, match="length zero"), ablated(model, torch.zeros(32)):
        pass
    with pytest.raises(ModelError, match="blocks are 0 to 1"), added(model, direction, 2):
        pass
    model.config.num_hidden_layers = 3
    with pytest.raises(ModelError, match="no list of 3 blocks"):
        decoder_blocks(model)


def test_a_direction_that_is_gone_has_no_cosine() -> None:
    model, sets = tiny_model("gpt2", dtype=torch.float64), sets_of()
    found = directions_of(model, sets, 8)
    gone = Directions(torch.zeros_like(found.refusal), found.null)
    site = direction_sites(model, sets, gone, found, 8)[-1]
    assert (site.norm, site.auroc, site.cosine) == (0.0, None, None) and site.start_auroc is not None


def test_adapters_are_read_through() -> None:
    """Under LoRA the blocks are the same ones, and a fresh adapter changes nothing."""
    from geomsafe.config import LoraSettings
    from geomsafe.models.adapters import add_lora

    plain, sets = tiny_model("llama"), sets_of()
    wanted = directions_of(plain, sets, 8).refusal
    adapted = add_lora(tiny_model("llama"), LoraSettings())
    torch.testing.assert_close(directions_of(adapted, sets, 8).refusal, wanted, rtol=1e-5, atol=1e-6)
    with ablated(adapted, wanted[1, -1]):
        ((_, streams),) = residuals(adapted, sets.harmful[:1], 1, 1)
    assert float((streams[0, 1:, -1] @ wanted[1, -1]).abs().max()) < 1e-4
