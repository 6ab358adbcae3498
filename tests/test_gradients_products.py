"""Inner products in slices equal their definition."""

from __future__ import annotations

import pytest
import torch

from geomsafe.gradients import products, row_dots


@pytest.mark.parametrize("width", [1 << 22, 40])
def test_products_equal_their_definition(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SLICE_ELEMENTS", width)
    rows = torch.randn((6, 5, 7), generator=torch.Generator().manual_seed(0))
    direction = torch.randn((5, 7), generator=torch.Generator().manual_seed(1))
    dots = row_dots(rows, direction)
    assert dots.dtype == torch.float64
    for i, row in enumerate(rows):
        assert float(dots[i]) == pytest.approx(float((row.double() * direction.double()).sum()), rel=1e-12, abs=1e-12)
