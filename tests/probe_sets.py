"""Small probe sets of random tokens, for tests of the probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import VOCABULARY, tiny_tokenizer

from geomsafe.config import TrainConfig
from geomsafe.models import Anchor, Loaded
from geomsafe.probes import Probes, Refusal, RefusalSet, refusal_set
from geomsafe.probes.controls import Controls
from geomsafe.probes.examples import ProbeExample
from geomsafe.probes.nulls import random_tokens, same_text

OPENINGS = [[20, 21, 22], [20, 23], [30, 31, 32, 33, 34]]
COMPLIANCE = [(40,), (41, 42), (41, 43, 44)]


def draw(generator: torch.Generator, low: int, high: int, count: int = 1) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def utility_rows(count: int = 9, seed: int = 1) -> list[ProbeExample]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        prompt, answer = draw(generator, 3, 9)[0], draw(generator, 1, 8)[0]
        ids = draw(generator, 5, VOCABULARY, prompt + answer)
        rows.append(ProbeExample(f"u{seed}-{index}", f"k{index}", ids, [-100] * prompt + ids[prompt:]))
    return rows


def refusals(count: int = 10, seed: int = 0) -> RefusalSet:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        prompt = draw(generator, 50, VOCABULARY, draw(generator, 4, 8)[0])
        answer = OPENINGS[index % len(OPENINGS)] + draw(generator, 50, VOCABULARY, draw(generator, 1, 5)[0]) + [1]
        rows.append(Refusal(f"id{index}", f"c{index // 2}", "p", "c", prompt + answer, [-100] * len(prompt) + answer))
    return refusal_set(rows, asked=count, left_out=0, compliance=COMPLIANCE, compliance_source="test")


def loaded_of(model: Any) -> Loaded:
    return Loaded(model, tiny_tokenizer(), "tiny", None, None, "f" * 64, "t" * 64, None, torch.device("cpu"))


def probes_of(
    model: Any, folder: Path, anchor: Anchor | None = None, safety: Any = ..., utility: Any = ..., **settings: Any
) -> Probes:
    controls = settings.pop("controls", None)
    memory = settings.pop("memory_budget", None)
    config = TrainConfig(**({"probe_examples": 8, "probe_batch_size": 2} | settings))
    return Probes(
        loaded_of(model),
        refusals() if safety is ... else safety,
        utility_rows() if utility is ... else utility,
        anchor or Anchor(model),
        config,
        folder,
        controls=controls,
        memory_budget=memory,
    )


def controls_of(safety: RefusalSet | None = None) -> Controls:
    """Return one set of every kind, of random tokens, for a set of refusals."""
    like = [ProbeExample(row.id, row.cluster, row.input_ids, row.labels) for row in (safety or refusals()).rows]
    benign = utility_rows(len(like), seed=3)
    sets = {
        "sham": utility_rows(len(like) - 1, seed=2),
        "benign": benign,
        "random-tokens": random_tokens(like, VOCABULARY, range(6), seed=0),
        "benign-length": utility_rows(len(like), seed=4),
        "loss-matched": utility_rows(len(like), seed=5),
        "same-text": same_text(benign, like),
    }
    return Controls(sets, {name: {"examples": len(rows)} for name, rows in sets.items()}, {})
