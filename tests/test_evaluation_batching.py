"""Models whose rows would change each other's numbers do not share: local attention, ALiBi, scaled rotations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding_models import Spelling
from reference import greedy_without_cache
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPTNeoConfig,
    LlamaConfig,
    MptConfig,
    Phi3Config,
    PreTrainedConfig,
)

from geomsafe.errors import ModelError
from geomsafe.evaluation import prefill
from geomsafe.evaluation.batching import goes_alone, may_share_beginnings
from geomsafe.evaluation.decoding import generate_greedy

VOCABULARY = 97
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ODD: dict[str, PreTrainedConfig] = {
    "mpt": MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=256, vocab_size=VOCABULARY, expansion_ratio=2),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "gpt_neo": GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=256,
    ),
    "dynamic": LlamaConfig(
        **SMALL,
        intermediate_size=64,
        max_position_embeddings=24,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    ),
    "longrope": Phi3Config(
        **SMALL,
        intermediate_size=64,
        pad_token_id=0,
        max_position_embeddings=256,
        original_max_position_embeddings=20,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "long_factor": [4.0, 5.0, 6.0, 7.0],
            "short_factor": [1.0, 1.0, 1.0, 1.0],
        },
    ),
}


def lively(config: PreTrainedConfig) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)

    def some(count: int) -> list[int]:
        return torch.randint(5, VOCABULARY, (count,), generator=draw).tolist()

    head = some(14)
    return [head + some(count) for count in (1, 3, 7, 7, 5)]


@pytest.mark.parametrize("name", ODD)
def test_answers_are_those_of_each_prompt_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prefill.PASS, "cpu", 1)
    model, ids = lively(ODD[name]), prompts()
    length = 3 if name == "dynamic" else 12
    done = generate_greedy(model, Spelling(), ids, length, len(ids), stop_ids=frozenset())
    if name in {"dynamic", "longrope"}:
        assert goes_alone(model, 22 + length)
        # The scaling looks at the whole row: only `generate` on the prompt alone, with its cache, says what is right.
        expected = [generate_greedy(model, Spelling(), [row], length, 1, stop_ids=frozenset())[0].text for row in ids]
    else:
        expected = [" ".join(map(str, greedy_without_cache(model, row, length, set()))) for row in ids]
    assert [row.text for row in done] == expected


def test_known_architectures_share_and_unknown_ones_do_not() -> None:
    assert may_share_beginnings(lively(LlamaConfig(**SMALL, intermediate_size=64)))
    assert not any(may_share_beginnings(lively(ODD[name])) for name in ("mpt", "bloom", "gpt_neo"))
    assert not goes_alone(lively(ODD["longrope"]), 20), "below the length at which the scaling sets in"


def test_logits_that_are_no_numbers_are_no_answer() -> None:
    model = lively(LlamaConfig(**SMALL, intermediate_size=64))
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ModelError, match="gives no finite logits"):
        generate_greedy(model, Spelling(), prompts(), 4, 4, stop_ids=frozenset())
