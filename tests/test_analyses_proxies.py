"""Proxies and shallow curves against their definitions, and what must be left undefined."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from geomsafe.analyses import proxies, rates, shallow
from geomsafe.analyses.proxies import Checkpoint, judge_proxy, separation
from geomsafe.errors import RecordError
from tests import reference


def _checkpoint(seed: int, rate: float, signal: float = 1.0, prompts: int = 60, shift: float = 0.0) -> Checkpoint:
    rng = np.random.default_rng(seed)
    complied = rng.random(prompts) < rate
    # Rounded, so that there are ties.
    risk = np.round(signal * complied + rng.normal(size=prompts) + shift, 1)
    return Checkpoint(risk.tolist(), complied.tolist(), [f"c{index // 3}" for index in range(prompts)])


def test_auroc_of_one_weight_set_is_that_of_scikit_learn() -> None:
    one = _checkpoint(0, 0.4)
    found = separation([one])
    assert found.auroc == pytest.approx(roc_auc_score(one.complied, one.risk), abs=1e-12)
    assert (found.n, found.complied) == (60, sum(one.complied))
    assert found.low is not None and found.high is not None and found.low < (found.auroc or 0) < found.high


def test_prompts_are_compared_under_equal_weights_only() -> None:
    """Two weight sets that differ in level and say nothing about prompts: pooled 1, paired by weights .5."""
    safe = Checkpoint([0.0] * 10, [True] + [False] * 9, [str(index) for index in range(10)])
    broken = Checkpoint([9.0] * 10, [True] * 9 + [False], [str(index) for index in range(10)])
    assert separation([safe, broken]).auroc == 0.5
    assert roc_auc_score([*safe.complied, *broken.complied], [*safe.risk, *broken.risk]) > 0.85
    several = [_checkpoint(seed, rate) for seed, rate in ((1, 0.2), (2, 0.7), (3, 1.0))]
    assert separation(several).auroc == pytest.approx(reference.stratified_auroc(several), abs=1e-12)


def test_the_interval_draws_clusters_with_all_their_answers() -> None:
    """Each draw's value equals scikit-learn's on the drawn rows, and the quantiles are those of the draws."""
    one = _checkpoint(4, 0.5, prompts=24)
    found = separation([one])
    rng, values = np.random.default_rng(9), []
    for _ in range(500):
        rows = [3 * index + k for index, k in product(rng.integers(8, size=8), range(3))]
        values.append(roc_auc_score([one.complied[row] for row in rows], [one.risk[row] for row in rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.04)
    whole = Checkpoint(one.risk, one.complied, ["all"] * 24)
    assert separation([whole]).low is None, "one cluster has no spread"


def test_the_order_of_prompts_and_monotone_scales_change_nothing() -> None:
    one = _checkpoint(5, 0.3)
    turned = Checkpoint(*(list(reversed(column)) for column in (one.risk, one.complied, one.clusters)))
    curved = Checkpoint([np.exp(value) for value in one.risk], one.complied, one.clusters)
    assert separation([one])[:3] == separation([turned])[:3] == separation([curved])[:3]


def _series(signal: float, count: int = 8) -> list[Checkpoint]:
    return [_checkpoint(seed, seed / count, signal, 90, shift=float(seed)) for seed in range(count)]


def test_a_proxy_that_ranks_prompts_and_checkpoints_is_valid() -> None:
    series = _series(4.0)
    found = judge_proxy(series)
    rho = stats.spearmanr([np.mean(one.risk) for one in series], [np.mean(one.complied) for one in series]).statistic
    assert found.word == "valid" and found.rho == pytest.approx(rho, abs=1e-12)
    assert found.checkpoints == 8


def test_a_proxy_of_the_weights_alone_is_not_valid() -> None:
    found = judge_proxy(_series(0.0))
    assert found.word == "not valid" and "AUROC" in found.reason and (found.rho or 0) >= 0.9


def test_a_proxy_of_the_wrong_sign_is_not_valid() -> None:
    turned = [Checkpoint([-value for value in one.risk], one.complied, one.clusters) for one in _series(4.0)]
    found = judge_proxy(turned)
    assert found.word == "not valid" and "AUROC" in found.reason and "Spearman" in found.reason


def test_what_cannot_be_told_is_undefined_with_its_reason() -> None:
    few = judge_proxy(_series(4.0)[1:4])
    assert few.word == "undefined" and "3 weight sets, 6 are needed" in few.reason
    one_class = [Checkpoint([float(seed), 2.0], [False, False], ["a", "b"]) for seed in range(8)]
    found = judge_proxy(one_class)
    assert found.word == "undefined" and "one class only" in found.reason and "same in all" in found.reason
    assert "no answers were judged" in judge_proxy([]).reason
    # What falls short already is not saved by what is missing.
    assert judge_proxy(_series(0.0)[3:5]).word == "not valid"


def test_uneven_columns_are_refused() -> None:
    with pytest.raises(RecordError, match="2 values, 1 verdicts"):
        separation([Checkpoint([1.0, 2.0], [True], ["a", "b"])])
    with pytest.raises(RecordError, match="not defined"):
        rates.ratio([], [], [])
    with pytest.raises(RecordError, match="one cluster a prompt"):
        shallow.position_curve([[1.0]], [])


def _decaying(prompts: int = 30) -> tuple[list[list[float]], list[str]]:
    rng = np.random.default_rng(0)
    values = [[4.0 * 0.6**t * float(rng.gamma(2.0)) for t in range(8 + index % 15)] for index in range(prompts)]
    return values, [f"c{index // 2}" for index in range(prompts)]


def test_the_curve_averages_the_prompts_that_reach_a_position() -> None:
    values, clusters = _decaying()
    curve = shallow.position_curve(values, clusters)
    assert [one.position for one in curve] == list(range(1, 21))
    for one in curve:
        reached = [row[one.position - 1] for row in values if len(row) >= one.position]
        assert one.n == len(reached) and one.mean == pytest.approx(sum(reached) / len(reached), abs=1e-12)
        assert one.low is not None and one.high is not None and one.low <= one.mean <= one.high
    assert curve[0].n == 30 and curve[-1].n < 30
    rows = [row[0] for row in values]
    wanted = reference.cluster_bootstrap(rows, clusters, 2000, 3)
    assert (curve[0].low, curve[0].high) == pytest.approx(wanted, rel=0.05)


def test_the_share_of_the_first_positions_is_a_ratio_of_sums() -> None:
    values, clusters = _decaying()
    found = shallow.first_share(values, clusters)
    assert found is not None
    wanted = sum(sum(row[:5]) for row in values) / sum(sum(row[:20]) for row in values)
    assert found.rate == pytest.approx(wanted, abs=1e-12) and found.low < found.rate < found.high


def test_a_flat_curve_is_not_shallow_and_no_divergence_has_no_share() -> None:
    flat = shallow.first_share([[2.0] * 20] * 6, list("aabbcc"))
    assert flat is not None and flat.rate == pytest.approx(5 / 20, abs=1e-12)
    assert shallow.first_share([[0.0] * 20] * 6, list("aabbcc")) is None
    assert shallow.position_curve([], []) == []


def test_few_checkpoints_reach_the_bound_by_chance_more_often_than_the_bound_says() -> None:
    """The count in the docstring: orders of 5 and of 6 whose rank correlation with 1..n reaches .9."""
    from itertools import permutations

    share = {
        n: np.mean([stats.spearmanr(range(n), order).statistic >= 0.9 - 1e-12 for order in permutations(range(n))])
        for n in (5, proxies.FEWEST_CHECKPOINTS)
    }
    assert share[5] == pytest.approx(1 / 24) and share[6] == pytest.approx(1 / 120)
