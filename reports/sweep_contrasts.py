"""Each arm of a sweep against its controls: the differences behind the verdict words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from geomsafe.analyses import rates, verdict
from geomsafe.analyses.rates import Difference, SeedTest
from geomsafe.analyses.verdict import Strength, Word
from geomsafe.reports.comparison import Comparison, compare
from geomsafe.reports.scores import MEASURES, Measure
from geomsafe.reports.sweep_arms import Sweep, SweepArm


@dataclass(frozen=True)
class SweepContrast:
    """An arm against its first control and the sweep's reference; a difference is None where nothing was paired."""

    arm: SweepArm
    control: str | None
    difference: Difference | None
    against_reference: Difference | None
    sham: Difference | None
    seeds: SeedTest | None
    seeds_p: float | None
    paired_seeds: int
    same: bool

    @property
    def word(self) -> Word | None:
        """The verdict word, None without a difference to the control."""
        if self.difference is None:
            return None
        plain = None if self.same else self.against_reference
        return verdict.judge(effect(self.difference), effect(plain) if plain else None, self.seeds_p)

    @property
    def strength(self) -> Strength | None:
        """What the number of paired seeds allows to say."""
        return verdict.strength(self.paired_seeds, starts=1) if self.difference is not None else None


def make_contrasts(sweep: Sweep) -> list[SweepContrast]:
    """Compare every arm with its matched control and with the reference.

    Args:
        sweep: the arms.

    Returns:
        (arms,) in their order; the seed tests of all of them are one family (Holm).
    """
    found = [_contrast(sweep, arm) for arm in sweep.arms]
    tested = [(index, one.seeds) for index, one in enumerate(found) if one.seeds is not None and one.seeds.n > 3]
    adjusted = rates.holm([seeds.p_value for _, seeds in tested])
    for (index, _), p in zip(tested, adjusted, strict=True):
        found[index] = replace(found[index], seeds_p=p)
    return found


def effect(found: Difference) -> verdict.Effect:
    """Return a difference as verdicts read it."""
    return verdict.Effect(found.difference, found.low, found.high)


def _contrast(sweep: Sweep, arm: SweepArm) -> SweepContrast:
    control, reference = sweep.control(arm), sweep.record.reference
    own = _compare(sweep, arm, control, sweep.primary)
    plain = own if control == reference else _compare(sweep, arm, reference, sweep.primary)
    sham = _compare(sweep, arm, control, MEASURES["sham_loss"])
    return SweepContrast(
        arm, control, own.difference, plain.difference, sham.difference, rates.seed_test(own.each), None,
        len(own.each), control == reference,
    )  # fmt: skip


def _compare(sweep: Sweep, arm: SweepArm, name: str | None, measure: Measure) -> Comparison:
    other = sweep.find(arm.condition, name)
    if other is None or other is arm:
        return Comparison(None, [])
    return compare(arm.outcomes(measure), other.outcomes(measure))
