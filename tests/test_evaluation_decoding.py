"""Our decoding loop against `generate` on each prompt alone, in float64; then its manners."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import pytest
import torch
from decoding_models import Spelling, lively_model
from reference import greedy_without_cache
from tiny import ARCHITECTURES, VOCABULARY, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, MambaConfig, MistralConfig

from geomsafe.evaluation.decoding import (
    Completion,
    context_length,
    generate_greedy,
    ignored_processors,
    stop_token_ids,
    supports_dynamic_cache,
)

LENGTH = 24


def prompts(count: int = 11) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(5, VOCABULARY) for _ in range(draw.randrange(1, 40))] for _ in range(count)]


def by_generate(model: Any, ids: list[int], stops: frozenset[int], length: int = LENGTH) -> list[int]:
    prompt = torch.tensor([ids])
    out = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=sorted(stops) or None,
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()


def frequent_stops(answers: list[list[int]]) -> frozenset[int]:
    """Two tokens that end as many of the answers as possible, but not all of them."""
    ends = {token: {row for row, answer in enumerate(answers) if token in answer[3:]} for token in sum(answers, [])}
    fitting = [pair for pair in combinations(ends, 2) if len(ends[pair[0]] | ends[pair[1]]) < len(answers)]
    return frozenset(max(fitting, key=lambda pair: len(ends[pair[0]] | ends[pair[1]])))


def ours(model: Any, ids: list[list[int]], stops: frozenset[int], batch_size: int = 4) -> list[Completion]:
    return generate_greedy(model, Spelling(), ids, LENGTH, batch_size, stop_ids=stops)


def expected(answers: list[list[int]], stops: frozenset[int]) -> list[Completion]:
    rows = []
    for answer in answers:
        finished = answer[-1] in stops
        kept = answer[:-1] if finished else answer
        rows.append(Completion(" ".join(map(str, kept)), len(kept), finished))
    return rows


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_generate_on_each_prompt_alone(arch: str) -> None:
    """Token for token, at batch sizes that mix lengths and endings."""
    model, ids = lively_model(arch), prompts()
    stops = frequent_stops([by_generate(model, row, frozenset()) for row in ids])
    answers = [by_generate(model, row, stops) for row in ids]
    wanted = expected(answers, stops)
    assert len({len(answer) for answer in answers}) > 3, "rows must end at different times for this to test anything"
    assert {row.finished for row in wanted} == {True, False}
    for batch_size in (1, 4, 11):
        assert ours(model, ids, stops, batch_size) == wanted


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_the_plain_loop_without_cache(arch: str) -> None:
    """The slow reference recomputes the whole text for every token."""
    model, ids = lively_model(arch), prompts(5)
    wanted = expected([greedy_without_cache(model, row, LENGTH, set()) for row in ids], frozenset())
    assert ours(model, ids, frozenset()) == wanted


@pytest.mark.parametrize("fault", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_comparison_sees_a_wrong_mask_and_wrong_positions(arch: str, fault: str) -> None:
    """Negative control: padding attended to, or positions counted from the padding."""
    model, ids = lively_model(arch), prompts()
    wanted = ours(model, ids, frozenset(), batch_size=1)

    def spoil(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if fault == "attention_mask":
            return args, kwargs | {fault: torch.ones_like(kwargs[fault])}
        # A constant shift leaves rotary attention as it is: stretch instead.
        return args, kwargs | {fault: kwargs[fault] * 2}

    model.register_forward_pre_hook(spoil, with_kwargs=True)
    assert ours(model, ids, frozenset(), batch_size=11) != wanted


def test_sliding_windows_keep_their_rows() -> None:
    """A Mistral-shaped model whose window is shorter than the text."""
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    ids = prompts()
    stops = frequent_stops([by_generate(model, row, frozenset()) for row in ids])
    assert supports_dynamic_cache(model)
    assert ours(model, ids, stops) == expected([by_generate(model, row, stops) for row in ids], stops)


def test_a_recurrent_model_goes_through_generate() -> None:
    """Its state is no key-value cache; processors of its generation config stay out here as well."""
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2, eos_token_id=None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    ids = prompts(3)
    plain = [by_generate(model, row, frozenset()) for row in ids]
    model.generation_config = GenerationConfig(repetition_penalty=1.7)
    assert [by_generate(model, row, frozenset()) for row in ids] != plain
    assert not supports_dynamic_cache(model)
    assert ours(model, ids, frozenset()) == expected(plain, frozenset())
    assert model.generation_config.repetition_penalty == 1.7


def test_model_and_random_state_are_left_as_found() -> None:
    """Mixed train and eval modes, torch's random state, no gradients, weights bitwise."""
    model = tiny_model("llama")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    ours(model, prompts(3), frozenset())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off_and_modes_come_back_after_an_error() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    assert ours(model, prompts(3), frozenset()) == ours(model, prompts(3), frozenset())
    with pytest.raises(RuntimeError, match="stop here"):

        def interrupt(done: int, total: int) -> None:
            raise RuntimeError("stop here")

        generate_greedy(model, Spelling(), prompts(2), 2, 2, progress=interrupt, stop_ids=frozenset())
    assert model.training


def test_progress_counts_every_prompt_once() -> None:
    calls: list[tuple[int, int]] = []
    model, ids = lively_model("llama"), prompts()
    stops = frequent_stops([by_generate(model, row, frozenset()) for row in ids])
    generate_greedy(model, Spelling(), ids, LENGTH, 4, progress=lambda *seen: calls.append(seen), stop_ids=stops)
    assert calls[-1] == (11, 11)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(calls) > 3


def test_end_tokens_come_from_generation_config_and_tokenizer() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    assert stop_token_ids(model, tokenizer) == {1}
    model.generation_config.eos_token_id = [7, 9]
    assert stop_token_ids(model, tokenizer) == {1, 7, 9}


def test_the_token_that_closes_a_turn_ends_an_answer() -> None:
    """A template of one's own may close turns with a special token that no config calls an end."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|system|>\n")
    system = tokenizer.convert_tokens_to_ids("<|system|>")
    assert stop_token_ids(model, tokenizer) == {1, system}
    tokenizer.chat_template = tokenizer.chat_template.replace("<|system|>\n", "\n")
    assert stop_token_ids(model, tokenizer) == {1}, "a line break ends no answer"
    tokenizer.chat_template = "{{ raise_exception('two turns') if messages|length > 1 else messages[0]['content'] }}"
    assert stop_token_ids(model, tokenizer) == {1}


def test_finished_rows_leave_the_batch() -> None:
    """The forward passes see fewer rows each time one ends, and no pass is made for an empty batch."""
    model, ids = lively_model("llama"), prompts()
    stops = frequent_stops([by_generate(model, row, frozenset()) for row in ids])
    answers = [by_generate(model, row, stops) for row in ids]
    sizes: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ours(model, ids, stops, batch_size=len(ids))
    assert sizes == [sum(len(answer) > step for answer in answers) for step in range(max(map(len, answers)))]
    assert sizes[-1] < sizes[0]


def test_the_text_has_no_special_tokens() -> None:
    """The end token is neither in the text nor counted; the flag tells of it."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    ids = tokenizer("What is bread?")["input_ids"]
    first = by_generate(model, ids, frozenset(), length=1)[0]
    done = generate_greedy(model, tokenizer, [ids], 4, 1, stop_ids=frozenset({first}))
    assert done == [Completion("", 0, True)]
    cut = generate_greedy(model, tokenizer, [ids], 4, 1, stop_ids=frozenset())
    assert (cut[0].tokens, cut[0].finished) == (4, False)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_context_limits_the_answer(arch: str) -> None:
    """GPT-2's table of positions ends there; a prompt that fills it is refused by number."""
    short = {"n_positions": 16} if arch == "gpt2" else {"max_position_embeddings": 16}
    model = tiny_model(arch, **short)
    assert context_length(model) == 16
    done = generate_greedy(model, Spelling(), [[5] * 12, [6] * 2], 8, 2, stop_ids=frozenset())
    assert [row.tokens for row in done] == [4, 8]
    with pytest.raises(ValueError, match="16 tokens fills the context of 16"):
        generate_greedy(model, Spelling(), [[5] * 16], 8, 2, stop_ids=frozenset())


def test_processors_of_the_generation_config_are_named_not_applied() -> None:
    model = tiny_model("llama")
    assert ignored_processors(model) == {}
    plain = ours(model, prompts(3), frozenset())
    model.generation_config = GenerationConfig(repetition_penalty=1.3, temperature=0.6, do_sample=True)
    assert ignored_processors(model) == {"repetition_penalty": 1.3}
    assert ours(model, prompts(3), frozenset()) == plain


def test_no_prompts_give_no_completions() -> None:
    assert ours(tiny_model("llama"), [], frozenset()) == []
    with pytest.raises(ValueError, match="no tokens"):
        ours(tiny_model("llama"), [[]], frozenset())
    with pytest.raises(ValueError, match="positive"):
        generate_greedy(tiny_model("llama"), Spelling(), [[1]], 0, 1)
