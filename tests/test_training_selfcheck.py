"""The check that a run makes of its own gradients before it trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

from geomsafe.data import Encoded
from geomsafe.training import selfcheck
from geomsafe.training.selfcheck import gradient_check


def rows(count: int = 4) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in range(7, 7 + count):
        ids = torch.randint(6, 300, (length,), generator=generator).tolist()
        made.append(Encoded(ids, [-100] * 3 + ids[3:], False, length - 3))
    return made


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral"])
def test_right_gradients_pass(arch: str) -> None:
    found = gradient_check(tiny_model(arch), rows(), pad_id=0)
    assert 0 <= found["relative_error"] <= found["tolerance"]
    assert found["rows"] == selfcheck.ROWS
    assert found["weights"] == found["of"]


def test_rows_that_see_each_other_fail() -> None:
    class Mixing(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor) -> Tensor:
            mixed: Tensor = self.inner(hidden - hidden.mean(dim=0, keepdim=True))
            return mixed

    model = tiny_model("llama")
    model.model.layers[0].mlp = Mixing(model.model.layers[0].mlp)
    found = gradient_check(model, rows(), pad_id=0)
    assert found["relative_error"] > 10 * found["tolerance"]


def test_of_a_large_model_some_weights_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "ELEMENTS", 10_000)
    found = gradient_check(tiny_model("llama"), rows(), pad_id=0)
    assert 1 < found["weights"] < found["of"]
