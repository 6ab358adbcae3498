"""Overlap, sufficiency, shares and drift: against projectors in full space, with planted truth and controls."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomsafe.analyses import shares, subspace_drift, subspaces, sufficiency
from geomsafe.errors import RecordError
from tests import reference


def _basis(rng: np.random.Generator, dimension: int, rank: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(dimension, rank)))[0]


# --- overlap -------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(3, 3), (2, 7), (6, 1)])
def test_left_overlap_equals_projection(ranks: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = (_basis(rng, 24, rank) for rank in ranks)
    found = subspaces.left_overlap(a, b)
    assert found.space == "left_space"
    assert found.phi == pytest.approx(reference.subspace_overlap(a, b), rel=1e-10)
    assert found.phi == pytest.approx(np.mean(np.cos(found.angles) ** 2), rel=1e-10)
    assert found.baseline == max(ranks) / 24 and found.ranks == ranks
    turned = subspaces.left_overlap(a @ _basis(rng, ranks[0], ranks[0]), b)
    assert turned.phi == pytest.approx(found.phi, rel=1e-10)


def test_angles_of_equal_orthogonal_and_slightly_turned_spaces() -> None:
    rng = np.random.default_rng(1)
    basis = _basis(rng, 20, 6)
    assert subspaces.left_overlap(basis[:, :3], basis[:, :3]).angles == pytest.approx(np.zeros(3), abs=1e-7)
    assert subspaces.left_overlap(basis[:, :3], basis[:, 3:]).angles == pytest.approx(np.full(3, np.pi / 2))
    planted = np.array([1e-9, 1e-4, 0.3])
    turned = basis[:, :3] * np.cos(planted) + basis[:, 3:] * np.sin(planted)
    # arccos of the largest singular value would read 1e-9 as 0.
    assert subspaces.left_overlap(basis[:, :3], turned).angles == pytest.approx(planted, rel=1e-5, abs=1e-14)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (3, 8)])
def test_random_subspaces_overlap_by_the_baseline(first: int, second: int) -> None:
    rng = np.random.default_rng(2)
    found = [subspaces.left_overlap(_basis(rng, 30, first), _basis(rng, 30, second)) for _ in range(300)]
    assert np.mean([one.phi for one in found]) == pytest.approx(found[0].baseline, rel=0.06)


def test_curve_over_k_takes_leading_columns() -> None:
    rng = np.random.default_rng(3)
    a, b = _basis(rng, 25, 5), _basis(rng, 25, 9)
    curve = subspaces.left_overlap_curve(a, b, 12)
    for k in range(1, 13):
        assert curve.phi[k - 1] == pytest.approx(reference.subspace_overlap(a[:, :k], b[:, :k]), rel=1e-10)
        assert curve.baseline[k - 1] == min(k, 9) / 25
    shared = np.concatenate([a[:, :2], _basis(rng, 25, 3)], axis=1)
    planted = subspaces.left_overlap_curve(a, shared, 2)
    assert planted.phi == pytest.approx([1.0, 1.0])
    with pytest.raises(RecordError, match=r"\(25, 5\) and \(24, 2\)"):
        subspaces.left_overlap(a, _basis(rng, 24, 2))


def _planted_rows(seed: int, shared: int, own: int, examples: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    basis = _basis(rng, dimension, shared + 2 * own)
    first = np.concatenate([basis[:, :shared], basis[:, shared : shared + own]], axis=1)
    second = np.concatenate([basis[:, :shared], basis[:, shared + own :]], axis=1)
    rank = shared + own
    return rng.normal(size=(examples, rank)) @ first.T, rng.normal(size=(examples, rank)) @ second.T


@pytest.mark.parametrize(("shared", "own"), [(3, 0), (2, 2), (0, 4), (1, 5)])
def test_span_overlap_from_the_gram_alone_equals_full_space(shared: int, own: int) -> None:
    """Planted: `shared` common directions of rank shared + own give phi = shared / (shared + own)."""
    first, second = _planted_rows(shared, shared, own, 10, 300)
    rows = np.concatenate([first, second])
    found = subspaces.span_overlap(rows @ rows.T, np.arange(10), np.arange(10, 20), dimension=300)
    rank = shared + own
    assert found.space == "example_span" and found.ranks == (rank, rank), "ten examples, fewer directions"
    assert found.phi == pytest.approx(shared / rank, abs=1e-8)
    assert np.sum(found.angles < 1e-4) == shared
    assert found.phi == pytest.approx(
        reference.subspace_overlap(reference.span_basis(first), reference.span_basis(second)), abs=1e-8
    )


def test_span_overlap_of_generic_sets_and_its_baseline() -> None:
    rng = np.random.default_rng(4)
    found = []
    for _ in range(60):
        rows = rng.normal(size=(20, 100))
        one = subspaces.span_overlap(rows @ rows.T, np.arange(8), np.arange(8, 20), dimension=100)
        wanted = reference.subspace_overlap(reference.span_basis(rows[:8]), reference.span_basis(rows[8:]))
        assert one.phi == pytest.approx(wanted, rel=1e-9)
        found.append(one.phi)
    assert np.mean(found) == pytest.approx(one.baseline, rel=0.06) and one.baseline == 0.12


def test_span_curve_takes_the_strongest_directions() -> None:
    rng = np.random.default_rng(18)
    rows = rng.normal(size=(20, 60)) * np.geomspace(5, 0.5, 60)
    curve = subspaces.span_overlap_curve(rows @ rows.T, np.arange(8), np.arange(8, 20), dimension=60, most=14)
    right = [np.linalg.svd(part, full_matrices=False)[2].T for part in (rows[:8], rows[8:])]
    for k in range(1, 15):
        wanted = reference.subspace_overlap(right[0][:, :k], right[1][:, :k])
        assert curve.phi[k - 1] == pytest.approx(wanted, rel=1e-8)
        assert curve.baseline[k - 1] == pytest.approx(min(k, 12) / 60)


def test_without_rank_tolerance_rounding_would_count_as_directions() -> None:
    """Negative control: the same planted sets with a tolerance of rounding's size have another rank and phi."""
    first, second = _planted_rows(7, 2, 2, 10, 300)
    rows = np.concatenate([first, second])
    gram = rows @ rows.T
    loose = subspaces.span_overlap(gram, np.arange(10), np.arange(10, 20), dimension=300, tolerance=1e-17)
    assert loose.ranks != (4, 4)
    with pytest.raises(RecordError, match="no gradient"):
        subspaces.span_overlap(np.zeros((4, 4)), np.arange(2), np.arange(2, 4), dimension=9)


def test_a_ceiling_holds_at_equal_count_only() -> None:
    assert subspaces.relative_to_ceiling(0.4, 0.8, examples=(16, 16), halves=(16, 16)) == 0.5
    with pytest.raises(RecordError, match="32 and 32 examples has no ceiling in halves of 16 and 16"):
        subspaces.relative_to_ceiling(0.4, 0.8, examples=(32, 32), halves=(16, 16))
    with pytest.raises(RecordError, match="do not overlap"):
        subspaces.relative_to_ceiling(0.4, 0.0, examples=(4, 4), halves=(4, 4))


def test_fewer_examples_overlap_less_with_no_other_cause() -> None:
    """Why counts must be equal: one distribution, left spaces of noisy means, halves of 8 against halves of 64."""
    rng = np.random.default_rng(5)
    true = np.einsum("ok,ik->oi", _basis(rng, 30, 3), _basis(rng, 20, 3))

    def left(count: int) -> np.ndarray:
        return np.linalg.svd(true + rng.normal(size=(count, 30, 20)).mean(axis=0))[0][:, :3]

    few = np.mean([subspaces.left_overlap(left(8), left(8)).phi for _ in range(20)])
    many = np.mean([subspaces.left_overlap(left(128), left(128)).phi for _ in range(20)])
    assert many - few > 0.2


def test_halves_share_no_cluster_and_have_equal_count() -> None:
    clusters = [0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 6]
    first, second = subspaces.disjoint_halves(list(clusters))
    assert len(first) == len(second) >= 4
    assert not {clusters[i] for i in first} & {clusters[i] for i in second}
    assert [list(half) for half in subspaces.disjoint_halves(list(clusters))] == [list(first), list(second)]
    with pytest.raises(RecordError, match="1 cluster cannot be split"):
        subspaces.disjoint_halves(["a", "a"])


# --- one-sample sufficiency ----------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 3])
def test_singles_equal_the_loop_in_full_space(copies: int) -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(12, 40)) + rng.normal(size=40)
    clusters = [index // copies for index in range(12)]
    found = sufficiency.single_sufficiency(rows @ rows.T, dimension=40, clusters=clusters)
    wanted = np.array(reference.single_against_others(rows, clusters))
    assert found.in_span == pytest.approx(wanted[:, 0], rel=1e-8)
    assert found.of_energy == pytest.approx(wanted[:, 1], rel=1e-9)
    assert found.cosine == pytest.approx(wanted[:, 2], rel=1e-9)
    assert set(found.others) == {12 - copies}
    assert found.span_baseline == pytest.approx((12 - copies) / 40)


def test_independent_singles_give_the_baseline_and_planted_ones_all() -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(30, 200))
    alone = sufficiency.single_sufficiency(noise @ noise.T, dimension=200)
    assert np.mean(alone.in_span) == pytest.approx(29 / 200, rel=0.15)
    assert abs(np.mean(alone.cosine)) < 0.05
    low = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 200))
    planted = sufficiency.single_sufficiency(low @ low.T, dimension=200)
    assert planted.in_span == pytest.approx(np.ones(30), abs=1e-6)
    assert planted.span_baseline == pytest.approx(2 / 200), "the rank of the others, not their count"


def test_a_single_inside_its_batch_would_always_suffice() -> None:
    """Negative control: phrasings of one action lie in each other's span; only clusters keep them out."""
    rng = np.random.default_rng(8)
    rows = np.repeat(rng.normal(size=(10, 300)), 2, axis=0) + 0.01 * rng.normal(size=(20, 300))
    gram, clusters = rows @ rows.T, [index // 2 for index in range(20)]
    leaked = sufficiency.single_sufficiency(gram, dimension=300)
    right = sufficiency.single_sufficiency(gram, dimension=300, clusters=clusters)
    assert leaked.in_span.min() > 0.9 > 0.15 > right.in_span.max()
    with pytest.raises(RecordError, match="no others"):
        sufficiency.single_sufficiency(gram, dimension=300, clusters=["one"] * 20)


def test_a_single_without_gradient_is_undefined_not_zero() -> None:
    rows = np.random.default_rng(9).normal(size=(5, 20))
    rows[2] = 0
    found = sufficiency.single_sufficiency(rows @ rows.T, dimension=20)
    assert np.isnan(found.in_span[2]) and np.isnan(found.cosine[2])
    assert np.all(np.isfinite(np.delete(found.in_span, 2)))


def test_left_sufficiency_is_one_curve_a_single() -> None:
    rng = np.random.default_rng(10)
    singles = [_basis(rng, 15, 4) for _ in range(3)]
    batches = [_basis(rng, 15, 6) for _ in range(3)]
    found = sufficiency.left_sufficiency(singles, batches, 6)
    assert found.shape == (3, 6)
    assert found[1, 3] == pytest.approx(reference.subspace_overlap(singles[1], batches[1][:, :4]), rel=1e-10)
    with pytest.raises(RecordError, match="3 singles and 2 batches"):
        sufficiency.left_sufficiency(singles, batches[:2])


# --- displacement shares -------------------------------------------------------------------


def test_share_equals_projection_and_random_spaces_its_baseline() -> None:
    rng = np.random.default_rng(11)
    displacement = rng.normal(size=(20, 16))
    basis = _basis(rng, 20, 6)
    columns = np.sum((basis.T @ displacement) ** 2, axis=1)
    found = shares.share_curve(columns, float(np.linalg.norm(displacement)), 20, 8)
    assert found is not None
    for k in range(1, 9):
        assert found.share[k - 1] == pytest.approx(reference.displacement_share(displacement, basis, k), rel=1e-10)
        assert found.random[k - 1] == pytest.approx(min(k, 6) / 20)
    drawn = []
    for _ in range(200):
        other = _basis(rng, 20, 6)
        drawn.append(reference.displacement_share(displacement, other, 6))
    assert np.mean(drawn) == pytest.approx(found.random[5], rel=0.05)


def test_planted_displacement_lies_inside_and_controls_do_not_hold_it() -> None:
    rng = np.random.default_rng(12)
    basis = _basis(rng, 40, 10)
    safety, sham = basis[:, :5], basis[:, 5:]
    displacement = safety @ rng.normal(size=(5, 30)) + 0.1 * rng.normal(size=(40, 30))
    norm = float(np.linalg.norm(displacement))
    inside, control = (
        shares.share_curve(np.sum((one.T @ displacement) ** 2, axis=1), norm, 40) for one in (safety, sham)
    )
    assert inside is not None and control is not None
    assert inside.share[4] > 0.9 and control.share[4] < inside.random[4]


def test_pooled_share_adds_energies_not_shares() -> None:
    rng = np.random.default_rng(13)
    moved = [10 * rng.normal(size=(12, 8)), 0.1 * rng.normal(size=(30, 8))]
    bases = [_basis(rng, 12, 3), _basis(rng, 30, 5)]
    columns = [np.sum((u.T @ d) ** 2, axis=1) for u, d in zip(bases, moved, strict=True)]
    norms = [float(np.linalg.norm(d)) for d in moved]
    found = shares.pooled_share_curve(columns, norms, [12, 30], 6)
    assert found is not None
    for k in (1, 4, 6):
        inside = sum(reference.displacement_share(d, u, k) * n**2 for d, u, n in zip(moved, bases, norms, strict=True))
        assert found.share[k - 1] == pytest.approx(inside / (norms[0] ** 2 + norms[1] ** 2), rel=1e-10)
    assert shares.share_curve(np.zeros(3), 0.0, 10) is None
    with pytest.raises(RecordError, match="do not belong together"):
        shares.share_curve(np.array([3.0]), 1.0, 10)


# --- drift ---------------------------------------------------------------------------------


def _halves(rng: np.random.Generator, true: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    left = [np.linalg.svd(true + noise * rng.normal(size=true.shape))[0][:, :4] for _ in range(2)]
    return left[0], left[1]


def test_drift_is_called_for_a_turned_space_and_not_for_noise() -> None:
    rng = np.random.default_rng(14)
    called = {True: 0, False: 0}
    for _ in range(40):
        basis = _basis(rng, 40, 8)
        right = _basis(rng, 20, 4)
        start = basis[:, :4] @ np.diag([4.0, 3, 2.5, 2]) @ right.T
        turned = basis[:, 4:] @ np.diag([4.0, 3, 2.5, 2]) @ right.T
        for moves in (True, False):
            found = subspace_drift.subspace_drift(
                _halves(rng, turned if moves else start, 0.12), _halves(rng, start, 0.12), examples=(8, 8), most=4
            )
            called[moves] += bool(found.drifted[3] and found.cross[3] < 0.8 * found.ceiling[3])
            assert found.baseline[3] == 4 / 40
    assert called[True] == 40 and called[False] == 0
    with pytest.raises(RecordError, match="equal N"):
        subspace_drift.subspace_drift((basis, basis), (basis, basis), examples=(8, 9))


def test_a_space_compared_with_itself_has_not_drifted() -> None:
    basis = _basis(np.random.default_rng(15), 20, 5)
    found = subspace_drift.subspace_drift((basis, basis), (basis, basis), examples=(8, 8))
    assert not found.drifted.any() and found.cross == pytest.approx(np.ones(32))


def _rank_one_sketch(rng: np.random.Generator, matrices: list[np.ndarray], dim: int) -> np.ndarray:
    maps = [(rng.normal(size=(dim, 12)), rng.normal(size=(dim, 9))) for _ in range(3)]
    return np.array([[np.einsum("mo,oi,mi->m", a, matrix, b) / math.sqrt(dim) for a, b in maps] for matrix in matrices])


def test_sketch_cosine_holds_its_deviation() -> None:
    """The stated deviation bounds the true error of rank-1 maps: within 2 of it in at least 95 % of seeds."""
    rng = np.random.default_rng(16)
    first = rng.normal(size=(12, 9))
    second = first + rng.normal(size=(12, 9))
    truth = float(np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second))
    errors = []
    for seed in range(200):
        sketches = _rank_one_sketch(np.random.default_rng(seed), [first, second], 512)
        found = subspace_drift.sketch_cosine(sketches[0], sketches[1])
        assert found is not None
        errors.append(abs(found.cosine - truth) / found.deviation)
        assert found.told_from_zero
    assert np.mean(np.array(errors) < 2) >= 0.95
    assert np.median(errors) > 0.05, "the bound is not a hundredfold"


def test_sketches_that_differ_in_map_are_refused_and_noise_is_not_told_from_zero() -> None:
    rng = np.random.default_rng(17)
    with pytest.raises(RecordError, match="dim and seed"):
        subspace_drift.sketch_cosine(np.ones((2, 4)), np.ones((2, 8)))
    assert subspace_drift.sketch_cosine(np.zeros((2, 4)), np.ones((2, 4))) is None
    told = [
        bool(found and found.told_from_zero)
        for found in (subspace_drift.sketch_cosine(*rng.normal(size=(2, 3, 64))) for _ in range(100))
    ]
    assert np.mean(told) < 0.05
