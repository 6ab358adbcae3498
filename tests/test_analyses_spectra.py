"""Spectra of Gram matrices, their nulls at equal count, and rarefaction over the number of examples."""

from __future__ import annotations

import numpy as np
import pytest

from geomsafe.analyses import spectra
from geomsafe.errors import RecordError
from tests import reference


def _rows(seed: int, examples: int = 20, dimension: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, dimension)) + 2 * rng.normal(size=dimension)


@pytest.mark.parametrize("examples", [6, 80])
def test_each_form_is_an_svd_of_the_gradients_themselves(examples: int) -> None:
    rows = _rows(0, examples)
    forms = {
        "uncentred": rows,
        "centred": rows - rows.mean(axis=0),
        "cosine": rows / np.linalg.norm(rows, axis=1, keepdims=True),
    }
    for form, matrix in forms.items():
        found = spectra.gram_singular_values(rows @ rows.T, form)  # type: ignore[arg-type]
        wanted = np.linalg.svd(matrix, compute_uv=False)
        rank = min(wanted.size, examples - (form == "centred"), 60)
        assert found[:rank] == pytest.approx(wanted[:rank], rel=1e-8)
        assert np.all(found[rank:] == 0), f"{form}: rounding counts as directions"
        ranks = spectra.ranks(found)
        assert ranks is not None
        assert ranks.effective_rank == pytest.approx(reference.effective_rank(matrix), rel=1e-6)
        curve = spectra.cumulative_energy(found, 8)
        assert curve is not None
        assert curve[4] == pytest.approx(reference.cumulative_energy(matrix, 5), rel=1e-9)


def test_the_mean_rules_the_uncentred_spectrum_only() -> None:
    """Planted: one strong common direction over isotropic variation."""
    rows = _rows(1, 40, 400)
    uncentred, centred = (
        spectra.ranks(spectra.gram_singular_values(rows @ rows.T, form)) for form in ("uncentred", "centred")
    )
    assert uncentred is not None and centred is not None
    assert uncentred.stable_rank < 1.5 < 20 < centred.stable_rank


def test_cosine_form_does_not_see_lengths() -> None:
    rows = _rows(2)
    longer = rows * np.linspace(0.1, 50, len(rows))[:, None]
    same = [spectra.gram_singular_values(one @ one.T, "cosine") for one in (rows, longer)]
    assert same[0] == pytest.approx(same[1], rel=1e-9)
    assert spectra.gram_singular_values(longer @ longer.T)[0] > 10 * spectra.gram_singular_values(rows @ rows.T)[0]
    with pytest.raises(RecordError, match="no gradient"):
        spectra.gram_singular_values(np.diag([1.0, 0.0]), "cosine")


def test_layers_at_once_equal_layers_one_by_one() -> None:
    grams = np.array([_rows(seed) @ _rows(seed).T for seed in range(5)])
    for form in ("uncentred", "centred", "cosine"):
        together = spectra.gram_singular_values(grams, form)  # type: ignore[arg-type]
        for gram, values in zip(grams, together, strict=True):
            assert values == pytest.approx(spectra.gram_singular_values(gram, form), abs=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_planted_rank_is_recovered(rank: int) -> None:
    rng = np.random.default_rng(rank)
    basis, _ = np.linalg.qr(rng.normal(size=(200, rank)))
    weights, _ = np.linalg.qr(rng.normal(size=(30, rank)))
    rows = weights @ basis.T
    values = spectra.gram_singular_values(rows @ rows.T)
    ranks = spectra.ranks(values)
    assert ranks is not None
    assert tuple(ranks) == pytest.approx((rank, rank, rank), rel=1e-6)
    curve = spectra.cumulative_energy(values)
    assert curve is not None
    assert curve[rank - 1] == pytest.approx(1.0) and (rank == 1 or curve[rank - 2] < 0.99)


def test_excess_is_zero_against_an_equal_null_and_positive_for_planted_structure() -> None:
    rng = np.random.default_rng(0)

    direction = np.outer(rng.normal(size=40) / np.sqrt(40), rng.normal(size=30) / np.sqrt(30))

    def mean_gradient(strength: float) -> np.ndarray:
        parts = rng.normal(size=(16, 40, 30)) + strength * direction
        return np.linalg.svd(parts.mean(axis=0), compute_uv=False)

    null, again, planted = mean_gradient(0.0), mean_gradient(0.0), mean_gradient(15.0)
    flat = spectra.excess_energy(again, null, examples=16, null_examples=16)
    steep = spectra.excess_energy(planted, null, examples=16, null_examples=16)
    assert flat is not None and steep is not None and len(steep) == 32
    assert np.abs(flat).max() < 0.05
    assert steep[0] > 0.4
    same = spectra.excess_energy(null, null, examples=16, null_examples=16)
    assert same == [0.0] * 32
    assert spectra.excess_energy(np.zeros(3), null, examples=1, null_examples=1) is None


def test_spectra_of_unequal_counts_are_refused() -> None:
    """Negative control: with fewer examples any gradient looks more concentrated; the number is not given out."""
    with pytest.raises(RecordError, match="8 and 64 examples"):
        spectra.excess_energy(np.ones(4), np.ones(4), examples=8, null_examples=64)
    rng = np.random.default_rng(3)
    few, many = (rng.normal(size=(n, 500)) for n in (8, 64))
    curves = [spectra.cumulative_energy(spectra.gram_singular_values(one @ one.T)) for one in (few, many)]
    assert curves[0] is not None and curves[1] is not None
    assert curves[0][7] - curves[1][7] > 0.5, "the same distribution, told apart by nothing but its count"


def test_rarefaction_equals_ranks_of_the_drawn_rows_and_is_seeded() -> None:
    rows = _rows(4, 24)
    gram = rows @ rows.T
    curve = spectra.rarefaction(gram, [4, 12, 24], draws=30)
    assert [one.units for one in curve] == [4, 12, 24]
    medians = [one.median.effective_rank for one in curve]
    assert medians == sorted(medians)
    whole = spectra.ranks(spectra.gram_singular_values(gram))
    assert whole is not None
    # All examples in another order: no spread is left.
    assert curve[2].low.effective_rank == pytest.approx(whole.effective_rank, rel=1e-9)
    assert curve[2].high.effective_rank == pytest.approx(whole.effective_rank, rel=1e-9)
    assert spectra.rarefaction(gram, [4, 12, 24], draws=30) == curve
    assert spectra.rarefaction(gram, [4], draws=30, seed=1) != curve[:1]


def test_rarefaction_flattens_at_the_planted_rank_and_rises_without_one() -> None:
    rng = np.random.default_rng(5)
    low = rng.normal(size=(48, 3)) @ rng.normal(size=(3, 500))
    high = rng.normal(size=(48, 500))
    for rows, flat in ((low, True), (high, False)):
        curve = [one.median.effective_rank for one in spectra.rarefaction(rows @ rows.T, [12, 24, 48], draws=10)]
        assert (curve[2] < 1.15 * curve[1]) is flat
        assert (curve[2] < 4) is flat


def test_rarefaction_draws_independent_examples() -> None:
    """Copies in clusters: by cluster the curve ends at 6; taken for independent they would fill a count of 24."""
    rng = np.random.default_rng(6)
    rows = np.repeat(rng.normal(size=(6, 300)), 4, axis=0)
    clusters = [index // 4 for index in range(24)]
    gram = rows @ rows.T
    by_cluster = spectra.rarefaction(gram, [6], clusters=clusters, draws=5)[0]
    assert by_cluster.low.effective_rank > 5.5
    copies = spectra.rarefaction(gram, [6], draws=20)[0]
    assert copies.median.effective_rank < 5
    with pytest.raises(RecordError, match="not within 2 and 6 independent examples"):
        spectra.rarefaction(gram, [24], clusters=clusters)
