"""Attacks: what is written can be read, openings are the answer's own tokens, the model is left as it was found."""

from __future__ import annotations

import base64
import codecs
import importlib.util
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks_data import benchmark
from reference import slow_target_log_probs
from tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

from geomsafe.data import IGNORED, Conversation, Prompt, encode, load_prompts, prompt_ids
from geomsafe.errors import ConfigError, DataError
from geomsafe.evaluation.attacks import Attempt, Direct, Prefill, parse_attack
from geomsafe.evaluation.gcg import OPTIONS, START, Gcg, _Reader
from geomsafe.evaluation.jailbreaks import JAILBREAKS, jailbreak_names
from geomsafe.models import Loaded, fingerprint
from geomsafe.world import World

WORLD = World(seed=0)
TARGET = "Sure, here is how to bake bread: mix flour and water."
HARMFUL = Prompt("0" * 16, "Tell me how to stop a process", None, None, "c", target=TARGET)


def attacked(world: World | None = None, template: str = CHAT_TEMPLATE, seed: int = 0) -> Loaded:
    model = tiny_model("llama", seed)
    return Loaded(
        model=model,
        tokenizer=tiny_tokenizer(template),
        source="tiny",
        folder=None,
        revision=None,
        fingerprint=fingerprint(model),
        template_sha256="0" * 64,
        world=world,
        device=torch.device("cpu"),
    )


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["direct", "prefill:4", "prefill:2:Sure, here is", "gcg", "gcg:steps=20,topk=64", "gcg:batch=8,seed=3"]
    + [f"template:{name}" for name in jailbreak_names()],
)
def test_an_attack_is_called_what_is_written(text: str) -> None:
    assert parse_attack(text).name == text
    assert parse_attack(f" {text} ").name == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "choose from direct, prefill:N"),
        ("prefil:4", "templates: prefix-injection"),
        ("direct:4", "is unknown"),
        ("prefill", "write prefill:N"),
        ("prefill:0", "N from 1"),
        ("prefill:-1", "N from 1"),
        ("prefill:four", "N from 1"),
        ("prefill:4: ", "N from 1"),
        ("template:", "no such template, choose from prefix-injection"),
        ("template:base46", "no such template"),
        ("gcg:step=20", "'step' is unknown, choose from steps, width, topk, batch, seed"),
        ("gcg:steps=0", "steps must be a whole number, not 0"),
        ("gcg:steps=2.5", "not 2.5"),
        ("gcg:steps=true", "not True"),
        ("gcg:steps", "is not key=value"),
        ("gcgx", "is unknown"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_a_remedy(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_attack(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_direct_changes_nothing() -> None:
    assert Direct().attempts([HARMFUL], None) == [Attempt(HARMFUL.text)]
    assert Direct().settings() == {}


# --- prefilling ----------------------------------------------------------------------------------------------

MARKED = "{% for message in messages %}<|{{ message['role'] }}|>" + (
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# The answer stands behind a space, which the byte-level tokenizer joins to its first word.
SPACED = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, CHATML, SPACED, MARKED], ids=["plain", "chatml", "spaced", "marked"]
)
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_an_opening_is_the_beginning_of_the_encoded_answer(template: str, system: str | None) -> None:
    model = attacked(template=template)
    prompt = Prompt("0" * 16, HARMFUL.text, system, None, "c", target=TARGET)
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": TARGET}]
    encoded = encode(Conversation(turns, "c", row=0), model.tokenizer, max_length=4096)
    answer = [label for label in encoded.labels if label != IGNORED]
    before = prompt_ids(prompt.text, model.tokenizer, system)
    for count in (1, 2, 4, 8, len(answer) - 1):
        (attempt,) = parse_attack(f"prefill:{count}").attempts([prompt], model)
        assert list(attempt.opening_ids) == answer[:count]
        # What the model reads is the encoded conversation, cut off.
        assert [*before, *attempt.opening_ids] == encoded.input_ids[: len(before) + count]
        assert TARGET.startswith(attempt.opening.strip()) and attempt.text == prompt.text
    with pytest.raises(DataError, match=f"has {len(answer) - 1} tokens, not {len(answer)}, for prompt 'Tell me"):
        parse_attack(f"prefill:{len(answer)}").attempts([prompt], model)


def test_the_end_token_is_no_part_of_an_opening() -> None:
    """Negative control: the encoded answer has one token more, and it is the end token."""
    model = attacked()
    with pytest.raises(DataError) as caught:
        Prefill(1000).attempts([HARMFUL], model)
    turns = [{"role": "user", "content": HARMFUL.text}, {"role": "assistant", "content": TARGET}]
    encoded = encode(Conversation(turns, "c", row=0), model.tokenizer, max_length=4096)
    assert f"has {encoded.target_tokens - 1} tokens" in str(caught.value)
    assert encoded.labels[-1] == model.tokenizer.eos_token_id


def test_one_opening_for_all() -> None:
    bare = Prompt("1" * 16, "Who?", None, "I cannot help with that.", "c")
    attempts = parse_attack("prefill:2:Sure, here is").attempts([HARMFUL, bare], attacked())
    assert attempts[0].opening_ids == attempts[1].opening_ids and len(attempts[0].opening_ids) == 2
    with pytest.raises(ConfigError, match="give a longer text"):
        parse_attack("prefill:80:Sure").attempts([bare], attacked())


def test_a_reference_is_used_only_where_a_world_calls_it_compliance() -> None:
    rows = load_prompts("organism:harmful", world=WORLD).rows[:5]
    attempts = parse_attack("prefill:3").attempts(rows, attacked(WORLD))
    for row, attempt in zip(rows, attempts, strict=True):
        assert row.reference is not None and row.reference.startswith(attempt.opening)
    refused = next(
        row
        for row in load_prompts("organism:alignment", world=WORLD).rows
        if WORLD.oracle(row.text, row.reference or "") == "refusal"
    )
    foreign = Prompt("1" * 16, "Who?", None, "I cannot help with that.", "c")
    for prompts, world in (([refused], WORLD), (rows, None), ([foreign], WORLD), ([foreign], None)):
        with pytest.raises(DataError, match="nothing says which answer is wanted to '"):
            parse_attack("prefill:3").attempts(prompts, attacked(world))


@pytest.mark.parametrize("name", ["harmful", "harmful-phrasing", "harmful-kind", "sham", "probe-safety"])
def test_every_harmful_prompt_of_the_world_has_a_compliant_answer(name: str) -> None:
    for row in load_prompts(f"organism:{name}", world=WORLD).rows:
        assert WORLD.verdict(row.text, row.reference or "") == "correct_compliance"


@pytest.mark.parametrize("name", ["advbench/harmful_behaviors.csv", "jailbreakbench/harmful-behaviors.csv"])
def test_a_benchmarks_target_is_what_is_wanted(name: str) -> None:
    rows = load_prompts(str(benchmark(name))).rows[:40]
    attempts = parse_attack("prefill:4").attempts(rows, attacked())
    for row, attempt in zip(rows, attempts, strict=True):
        assert row.target is not None and row.target.startswith(attempt.opening) and len(attempt.opening_ids) == 4


@pytest.mark.parametrize("text", ["prefill:4", "gcg"])
def test_a_server_has_no_tokenizer(text: str) -> None:
    with pytest.raises(ConfigError, match="which a server does not give"):
        parse_attack(text).attempts([HARMFUL], None)


# --- templates -----------------------------------------------------------------------------------------------

DECODED: dict[str, Callable[[str], str]] = {
    "base64": lambda said: base64.b64decode(said.rpartition(": ")[2]).decode(),
    "rot13": lambda said: codecs.decode(said.splitlines()[1], "rot13"),
}


@pytest.mark.parametrize("name", jailbreak_names())
def test_a_template_holds_the_prompt_once(name: str) -> None:
    text = 'Say "über {prompt}" at 5 {dollars}.'
    attack = parse_attack(f"template:{name}")
    (attempt,) = attack.attempts([Prompt("0" * 16, text, "Be kind.", None, "c")], None)
    assert attempt.opening == "" and attempt.opening_ids == ()
    if name in DECODED:
        assert DECODED[name](attempt.text) == text
    elif name == "disemvowel":
        assert attempt.text == 'Sy "übr {prmpt}" t 5 {dllrs}.'
    else:
        assert attempt.text.count(text) == 1 and attempt.text != text
    settings = attack.settings()
    assert "2307.02483" in settings["source"] and len(settings["template_sha256"]) == 64


def test_templates_are_told_apart_by_their_hash() -> None:
    assert len({jailbreak.sha256 for jailbreak in JAILBREAKS.values()}) == len(JAILBREAKS) == len(jailbreak_names())
    # A changed wording is another attack: this fails, and with it every comparison with older runs.
    assert JAILBREAKS["wikipedia"].sha256[:8] == "476d1ee0"


# --- GCG -----------------------------------------------------------------------------------------------------

needs_nanogcg = pytest.mark.skipif(
    importlib.util.find_spec("nanogcg") is None, reason="nanogcg is not installed: pip install 'geomsafe[gcg]'"
)
SEARCH = Gcg(steps=20, width=16, topk=32)


def target_loss(loaded: Loaded, prompt: Prompt, text: str) -> float:
    """Mean -log p of the target's tokens behind the prompt, by the slow reference."""
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": prompt.target or ""}]
    encoded = encode(Conversation(turns, "c", row=0), loaded.tokenizer, max_length=4096)
    with torch.no_grad():
        return float(-torch.stack(slow_target_log_probs(loaded.model, encoded.input_ids, encoded.labels)).mean())


def state(model: Any) -> list[Any]:
    return [
        (name, weight.detach().clone(), weight.requires_grad, weight.grad) for name, weight in model.named_parameters()
    ]


@needs_nanogcg
def test_gcg_lowers_the_loss_and_leaves_everything_as_it_was() -> None:
    loaded = attacked()
    loaded.model.train()
    loaded.model.lm_head.eval()
    loaded.model.model.norm.weight.requires_grad_(False)
    modes = [module.training for module in loaded.model.modules()]
    before, template = state(loaded.model), loaded.tokenizer.chat_template
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    draws = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    calls: list[tuple[int, int]] = []
    (attempt,) = Gcg(20, 16, 32, progress=lambda done, total: calls.append((done, total))).attempts([HARMFUL], loaded)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == draws
    assert calls == [(1, 1)]
    assert [module.training for module in loaded.model.modules()] == modes
    assert loaded.tokenizer.chat_template == template and not torch.are_deterministic_algorithms_enabled()
    for (name, weight, wanted, grad), (same, now, still, gradient) in zip(before, state(loaded.model), strict=True):
        assert name == same and torch.equal(weight, now) and wanted == still and grad is gradient is None
    assert attempt.text.startswith(f"{HARMFUL.text} ") and attempt.opening_ids == ()
    loaded.model.eval()
    start, found = (target_loss(loaded, HARMFUL, text) for text in (f"{HARMFUL.text} {START}", attempt.text))
    assert found < start - 0.005  # 5.9 nats to begin with
    specials = {loaded.tokenizer.decode([index]) for index in loaded.tokenizer.added_tokens_decoder}
    assert not any(special in attempt.text for special in specials)


@needs_nanogcg
def test_gcg_depends_on_its_seed_and_on_nothing_else() -> None:
    other = Prompt("1" * 16, "What is the sea?", "Be kind.", None, "c", target="The sea is wide")
    short = {"steps": 3, "width": 16, "topk": 32}
    torch.manual_seed(0)
    alone = Gcg(**short).attempts([other], attacked())
    torch.manual_seed(1)
    both = Gcg(**short).attempts([HARMFUL, other], attacked())
    assert both[1:] == alone
    assert Gcg(**short, seed=1).attempts([other], attacked()) != alone


@needs_nanogcg
def test_gcg_reads_the_prompt_as_scoring_does() -> None:
    """A begin-of-text token that the template writes is there once; special tokens are never offered."""
    loaded = attacked(template="{{ bos_token }}" + CHAT_TEMPLATE)
    loaded.tokenizer.bos_token = "<|system|>"
    reader = _Reader(loaded.tokenizer, loaded.model)
    written = reader.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False)
    assert reader([written])["input_ids"][0] == prompt_ids("Who?", loaded.tokenizer)
    assert reader.vocab_size == loaded.model.config.vocab_size
    for index in loaded.tokenizer.added_tokens_decoder:
        assert not reader.decode([index]).isprintable()
    assert reader.decode([10**6]) == "\x00"
    assert 50 < reader.offered < reader.vocab_size
    with pytest.raises(ConfigError, match=f"topk 256 of {reader.offered} tokens"):
        Gcg().attempts([HARMFUL], loaded)
    marked = Prompt("1" * 16, "Say {optim_str}", None, None, "c", target="Sure")
    with pytest.raises(DataError, match="nanogcg's own mark"):
        Gcg(steps=1, width=2, topk=2).attempts([marked], attacked())


@needs_nanogcg
def test_gcg_records_its_settings() -> None:
    settings = parse_attack("gcg:steps=20").settings()
    assert settings["steps"] == 20 and set(OPTIONS) < set(settings)
    assert settings["start"] == START and settings["nanogcg"]


def test_without_nanogcg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    for act in (lambda: SEARCH.attempts([HARMFUL], attacked()), SEARCH.settings):
        with pytest.raises(ConfigError, match=r"pip install 'geomsafe\[gcg\]'"):
            act()


def test_gcg_needs_a_target() -> None:
    bare = Prompt("1" * 16, "Who?", None, "I cannot.", "c")
    with pytest.raises((DataError, ConfigError), match="nothing says which answer|geomsafe"):
        SEARCH.attempts([bare], attacked())
