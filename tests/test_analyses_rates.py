"""Every statistic of rates and agreement against its definition: 1e-12, or the same draws for what is resampled.

Coverage, power and invariances are in test_analyses.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomsafe.analyses import agreement, rates
from geomsafe.errors import RecordError
from tests import reference

EXACT = 1e-12


def lopsided(seed: int, groups: int, share: float = 0.4) -> tuple[list[bool], list[str]]:
    """Outcomes in clusters of 1 to 5 prompts that lean one way each, out of order."""
    rng = np.random.default_rng(seed)
    names = [f"c{group}" for group in range(groups) for _ in range(rng.integers(1, 6))]
    leaning = {name: rng.beta(share * 2, (1 - share) * 2) for name in sorted(set(names))}
    hits = [bool(rng.random() < leaning[name]) for name in names]
    order = rng.permutation(len(names))
    return [hits[i] for i in order], [names[i] for i in order]


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95, 0.99])
def test_wilson_at_any_level(level: float) -> None:
    z = reference.normal_quantile(0.5 + level / 2)
    for count, n in ((0, 1), (1, 1), (1, 7), (50, 100), (519, 520)):
        low, high = reference.wilson(count, n, z)
        assert rates.wilson(count, n, level) == pytest.approx((count / n, max(low, 0), min(high, 1)), abs=EXACT)
    with pytest.raises(RecordError, match="not defined"):
        rates.wilson(0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_clustered_rate_is_the_bootstrap_of_its_definition(seed: int) -> None:
    hits, clusters = lopsided(seed, 14)
    found = rates.rate(hits, clusters)
    expected = reference.seeded_cluster_bootstrap(hits, clusters, rates.RESAMPLES, 0)
    assert found.interval == "cluster bootstrap"
    assert (found.low, found.high) == pytest.approx(expected, abs=EXACT)
    assert found.rate == pytest.approx(sum(hits) / len(hits), abs=EXACT)
    assert (found.count, found.n, found.clusters) == (sum(hits), len(hits), len(set(clusters)))


def test_single_prompts_resampled_are_another_interval() -> None:
    """The negative control: clusters whose prompts all agree hold as much as one prompt each."""
    hits, clusters = [index // 4 % 3 == 0 for index in range(48)], [str(index // 4) for index in range(48)]
    found = rates.rate(hits, clusters)
    alone = reference.seeded_cluster_bootstrap(hits, [str(i) for i in range(48)], rates.RESAMPLES, 0)
    assert found.high - found.low > 1.5 * (alone[1] - alone[0])


@pytest.mark.parametrize(("hit", "size"), [(False, 3), (True, 4)])
def test_clusters_that_all_agree_count_as_one_prompt_each(hit: bool, size: int) -> None:
    found = rates.rate([hit] * (10 * size), [str(i // size) for i in range(10 * size)])
    low, high = reference.wilson(10 * hit, 10, reference.normal_quantile(0.975))
    assert found.interval == "Wilson over clusters"
    assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)), abs=EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_a_paired_difference_is_its_definition(seed: int) -> None:
    hits, clusters = lopsided(seed, 10)
    rng = np.random.default_rng(seed + 10)
    b = [float(hit) for hit in hits]
    a = [max(value, float(rng.random() < 0.3)) for value in b]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    found = rates.paired_difference(a, b, clusters)
    assert found.difference == pytest.approx(sum(differences) / len(differences), abs=EXACT)
    expected = reference.seeded_cluster_bootstrap(differences, clusters, rates.RESAMPLES, 0)
    assert (found.low, found.high) == pytest.approx(expected, abs=EXACT)
    # 2^10 sign flips: all of them are counted.
    assert found.p_value == pytest.approx(reference.cluster_sign_flip(differences, clusters), abs=EXACT)
    error = reference.cluster_standard_error(differences, clusters)
    quantiles = reference.t_quantile(0.975, 9) + reference.t_quantile(0.8, 9)
    assert found.detectable == pytest.approx(quantiles * error, rel=EXACT)
    # Negative control: the error of independent pairs is another.
    alone = reference.cluster_standard_error(differences, [str(i) for i in range(len(differences))])
    assert error != pytest.approx(alone, rel=1e-3)


def test_many_clusters_are_permuted_at_random_and_come_close_to_all_ways() -> None:
    rng = np.random.default_rng(5)
    differences = [float(x) for x in rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=45)]
    clusters = [str(i // 3) for i in range(45)]
    found = rates.paired_difference([max(d, 0.0) for d in differences], [max(-d, 0.0) for d in differences], clusters)
    exact = reference.cluster_sign_flip(differences, clusters)
    assert found.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact / rates.RESAMPLES))
    # (as extreme + 1) / (resamples + 1), doubled: a random test never says 0.
    steps = found.p_value / 2 * (rates.RESAMPLES + 1)
    assert steps == pytest.approx(round(steps), abs=1e-9) and steps >= 1


def test_a_seed_test_counts_all_sign_flips() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 6, 10, 12):
        values = [float(x) for x in rng.normal(0.3, 1.0, n)]
        found = rates.seed_test(values)
        assert found is not None and found.n == n and found.smallest_p == 2.0 ** (1 - n)
        assert found.mean == pytest.approx(sum(values) / n, abs=EXACT)
        assert found.p_value == pytest.approx(
            reference.cluster_sign_flip(values, [str(i) for i in range(n)]), abs=EXACT
        )
        same = rates.seed_test([abs(x) for x in values])
        assert same is not None and same.p_value == pytest.approx(same.smallest_p, abs=EXACT)


@pytest.mark.parametrize("freedom", [1, 2, 9, 99, 519])
def test_the_detectable_difference_is_two_quantiles_of_t(freedom: int) -> None:
    for alpha, power in ((0.05, 0.8), (0.01, 0.9)):
        quantiles = reference.t_quantile(1 - alpha / 2, freedom) + reference.t_quantile(power, freedom)
        found = rates.detectable_difference(0.02, freedom, alpha, power)
        assert found == pytest.approx(0.02 * quantiles, rel=1e-11)


def test_what_a_planned_comparison_can_find() -> None:
    found = rates.planned_difference(520, 260, 0.2, correlation=0.5)
    error = math.sqrt(0.2 * (1 + (520 / 260 - 1) * 0.5) / 520)
    quantiles = reference.t_quantile(0.975, 259) + reference.t_quantile(0.8, 259)
    assert found == pytest.approx(error * quantiles, rel=1e-11)
    # Wordings that always agree add nothing; independent ones count in full.
    assert rates.planned_difference(520, 260, 0.2) == pytest.approx(rates.planned_difference(260, 260, 0.2), rel=EXACT)
    independent = [rates.planned_difference(520, groups, 0.2, correlation=0.0) for groups in (260, 520)]
    assert independent[0] == pytest.approx(independent[1], rel=0.01)


def test_the_plan_is_what_equal_clusters_come_to() -> None:
    """Clusters that agree, as many for a as for b: apart from the factor for the estimated mean, the plan is exact."""
    signs = [1.0] * 6 + [-1.0] * 6 + [0.0] * 28
    differences = [sign for sign in signs for _ in range(3)]
    clusters = [str(i // 3) for i in range(120)]
    found = rates.paired_difference([max(d, 0.0) for d in differences], [max(-d, 0.0) for d in differences], clusters)
    assert found.detectable is not None
    assert found.detectable == pytest.approx(rates.planned_difference(120, 40, 0.3) * math.sqrt(40 / 39), rel=EXACT)


@pytest.mark.parametrize(
    ("n", "clusters", "discordant", "correlation"),
    [
        (10, 1, 0.2, 1.0),
        (10, 11, 0.2, 1.0),
        (10, 5, 0.0, 1.0),
        (10, 5, 1.1, 1.0),
        (10, 5, 0.2, -0.1),
        (10, 5, 0.2, 1.1),
    ],
)
def test_plans_that_make_no_sense_are_refused(n: int, clusters: int, discordant: float, correlation: float) -> None:
    with pytest.raises(RecordError, match="planned"):
        rates.planned_difference(n, clusters, discordant, correlation)


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8):
        values = [float(x) for x in rng.beta(0.4, 2.0, n)]
        assert rates.holm(values) == pytest.approx(reference.closed_bonferroni(values), abs=EXACT)
    tied = [0.02, 0.02, 0.9, 0.02]
    assert rates.holm(tied) == pytest.approx(reference.closed_bonferroni(tied), abs=EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = [bool(x) for x in rng.random(60) < 0.3]
    second = [value if rng.random() < 0.8 else not value for value in first]
    found = agreement.judge_agreement(first, second)
    pairs = list(zip(first, second, strict=True))
    assert found.kappa == pytest.approx(reference.kappa(first, second), abs=EXACT)
    assert found.agreement == pytest.approx(sum(a == b for a, b in pairs) / 60, abs=EXACT)
    counts = [pairs.count(wanted) for wanted in ((True, True), (True, False), (False, True), (False, False))]
    assert [found.both, found.only_first, found.only_second, found.neither] == counts and found.n == 60


def test_kappa_of_opposites_and_of_chance() -> None:
    first = [True] * 5 + [False] * 5
    opposite, chance = ([not value for value in first], [True, False] * 5)
    assert agreement.judge_agreement(first, opposite).kappa == pytest.approx(-1.0, abs=EXACT)
    expected = reference.kappa(first, chance)
    assert agreement.judge_agreement(first, chance).kappa == pytest.approx(expected, abs=EXACT)
    # One judge never varies: agreement is that of chance, and kappa is 0 rather than undefined.
    assert agreement.judge_agreement(first, [True] * 10).kappa == pytest.approx(0.0, abs=EXACT)
