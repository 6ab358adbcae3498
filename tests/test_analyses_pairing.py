"""Controls are found by rule, before any outcome is known; verdict words follow from intervals."""

from __future__ import annotations

import pytest

from geomsafe.analyses import pairing, verdict
from geomsafe.analyses.pairing import Method, Run
from geomsafe.analyses.verdict import Effect

BASE = {name: None for name in pairing.DECISIVE} | {
    "model": "organism",
    "lr": 1e-3,
    "batch_size": 16,
    "accumulation": 1,
}
SHADOW = Method("ema", {"eta": 0.25, "mode": "shadow"})
FEEDBACK = Method("ema", {"eta": 0.25, "mode": "feedback"})


def _runs(
    name: str, *methods: Method, weights: tuple[str, ...] = ("theta_0", "final"), **settings: object
) -> list[Run]:
    return [Run(f"{name}-{seed}", seed, {**BASE, **settings}, methods, weights) for seed in range(3)]


def _contrast(runs: list[Run], wanted: str) -> tuple[pairing.Contrast, dict[str, pairing.Arm]]:
    arms = pairing.make_arms(runs)
    named = {arm.key: arm for arm in arms}
    found = [c for c in pairing.make_contrasts(arms) if named[c.arm].label.startswith(wanted)]
    assert len(found) == 1, [arm.label for arm in arms]
    return found[0], named


def test_runs_that_differ_in_seed_are_one_arm() -> None:
    arms = pairing.make_arms(_runs("a") + _runs("b", lr=1e-4))
    assert [dict(arm.runs) for arm in arms] == [
        {0: "a-0", 1: "a-1", 2: "a-2"},
        {0: "b-0", 1: "b-1", 2: "b-2"},
    ]
    assert [arm.label for arm in arms] == ["baseline · lr\u00a01e-3", "baseline · lr\u00a01e-4"]


def test_shadow_is_compared_with_its_own_last_iterate() -> None:
    runs = _runs("plain") + _runs("shadow", SHADOW, weights=("theta_0", "final", "ema", "step-000010"))
    contrast, arms = _contrast(runs, "EMA shadow")
    assert contrast.kind == "own last iterate" and contrast.control is not None
    control = arms[contrast.control]
    assert control.weights == "final" and control.runs == arms[contrast.arm].runs
    assert (arms[contrast.arm].effective_lr, arms[contrast.arm].window) == (1e-3, 4.0)


def test_feedback_is_compared_with_learning_rate_times_eta() -> None:
    runs = _runs("plain") + _runs("matched", lr=2.5e-4) + _runs("near", lr=2.6e-4) + _runs("fed", FEEDBACK)
    contrast, arms = _contrast(runs, "EMA feedback")
    assert contrast.control is not None and contrast.baseline is not None
    assert arms[contrast.control].runs[0] == "matched-0"
    assert arms[contrast.baseline].runs[0] == "plain-0"
    assert arms[contrast.arm].effective_lr == pytest.approx(2.5e-4)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"lr": 2.6e-4}, "no run at"),
        ({"lr": 2.5e-4, "clip": 0.5}, "no run at"),
        ({"lr": 2.5e-4, "data": "x"}, "no run at"),
    ],
)
def test_a_control_that_differs_in_anything_else_is_none(others: dict[str, object], why: str) -> None:
    contrast, _ = _contrast(_runs("other", **others) + _runs("fed", FEEDBACK), "EMA feedback")
    assert contrast.control is None and why in contrast.basis


def test_lookahead_has_no_matched_learning_rate() -> None:
    slow = Method("ema", {"eta": 0.25, "mode": "feedback", "every": 5, "unit": "step"})
    contrast, _ = _contrast(_runs("matched", lr=2.5e-4) + _runs("fed", slow), "EMA feedback")
    assert contrast.control is None and "Lookahead" in contrast.basis


def test_careless_and_careful_are_a_contrast_of_settings() -> None:
    contrast, arms = _contrast(_runs("careless") + _runs("careful", lr=1e-4), "baseline · lr\u00a01e-4")
    assert contrast.kind == "settings" and contrast.control is not None
    assert arms[contrast.control].runs[0] == "careless-0"
    assert "lr 1e-3 → 1e-4" in contrast.basis
    other_data, _ = _contrast(_runs("careless") + _runs("other", lr=1e-4, data="x.json"), "baseline · data\u00a0x.json")
    assert other_data.control is None


def test_repeated_runs_are_found_and_counted_once() -> None:
    again = Run("again", 0, BASE, (), ("final",))
    runs = [*_runs("a"), again]
    assert pairing.rerun_pairs(runs) == [("a-0", "again")]
    assert pairing.make_arms(runs)[0].runs == {0: "a-0", 1: "a-1", 2: "a-2"}


@pytest.mark.parametrize(
    ("seeds", "starts", "word"),
    [(1, 1, "descriptive"), (3, 3, "descriptive"), (8, 1, "exploratory"), (8, 3, "confirmatory")],
)
def test_strength_follows_seeds_and_starts(seeds: int, starts: int, word: str) -> None:
    assert verdict.strength(seeds, starts) == word


@pytest.mark.parametrize(
    ("control", "baseline", "p", "word"),
    [
        (Effect(-0.3, -0.4, -0.2), Effect(-0.3, -0.4, -0.2), None, "shown"),
        (Effect(-0.3, -0.4, -0.2), None, 0.2, "underpowered"),
        (Effect(0.3, 0.2, 0.4), None, 0.01, "shown"),
        (Effect(0.0, -0.02, 0.02), Effect(-0.6, -0.7, -0.5), None, "explained by control"),
        (Effect(0.0, -0.02, 0.02), Effect(-0.01, -0.03, 0.01), None, "refuted"),
        (Effect(0.01, 0.005, 0.015), None, None, "refuted"),
        (Effect(-0.03, -0.1, 0.04), Effect(-0.6, -0.7, -0.5), None, "underpowered"),
    ],
)
def test_verdict_words(control: Effect, baseline: Effect | None, p: float | None, word: str) -> None:
    assert verdict.judge(control, baseline, p) == word


def test_sets_beside_training_share_one_run_and_each_has_its_last_iterate() -> None:
    methods = [Method("interpolate", {"alpha": 0.5}), Method("shrink", {"distance": None, "to": "ema"}), SHADOW]
    methods.append(Method("interpolate", {"alpha": 0.25}))
    sets = ("theta_0", "final", "interpolate", "interpolate-2", "shrink", "ema")
    acting = Method("l2sp", {"strength": 0.1})
    for extra in ((), (acting,)):
        arms = pairing.make_arms(_runs("run", *extra, *methods, weights=sets))
        by_weights = {arm.weights: arm for arm in arms}
        prefix = "l2sp (strength 0.1) + " if extra else ""
        assert by_weights["interpolate"].label == f"{prefix}interpolate (alpha 0.5)"
        assert by_weights["interpolate-2"].label == f"{prefix}interpolate (alpha 0.25)"
        assert by_weights["shrink"].label == f"{prefix}shrink (to ema)"
        assert by_weights["final"].methods == extra
        controls = {c.arm: c for c in pairing.make_contrasts(arms)}
        for name in sets[2:]:
            contrast = controls[by_weights[name].key]
            assert (contrast.kind, contrast.control) == ("own last iterate", by_weights["final"].key)
            assert contrast.baseline == (None if extra else by_weights["final"].key)


def test_a_set_beside_a_run_that_feeds_back_belongs_to_its_last_iterate() -> None:
    line = Method("interpolate", {"alpha": 0.5})
    arms = pairing.make_arms(
        _runs("fed", FEEDBACK, line, weights=("final", "interpolate")) + _runs("matched", line, lr=2.5e-4)
    )
    controls = {c.arm: c for c in pairing.make_contrasts(arms)}
    beside, fed = (
        next(arm for arm in arms if arm.weights == name and arm.methods) for name in ("interpolate", "final")
    )
    assert (controls[beside.key].kind, controls[beside.key].control) == ("own last iterate", fed.key)
    # What trained it keeps its own control, although that run has sets beside it too.
    assert controls[fed.key].kind == "learning rate x eta" and controls[fed.key].control is not None


def test_last_iterates_of_merged_runs_stand_in_for_runs_of_their_own() -> None:
    merged = _runs("merged", SHADOW, weights=("final", "ema")) + _runs("careful", lr=1e-4)
    contrast, named = _contrast(merged, "baseline · lr\u00a01e-4")
    assert contrast.control is not None and named[contrast.control].runs[0] == "merged-0"
    # Beside a run of its own at equal settings, the last iterate of a shadow run is no second reference.
    contrast, named = _contrast(merged + _runs("plain"), "baseline · lr\u00a01e-4")
    assert contrast.control is not None and named[contrast.control].runs[0] == "plain-0"


def test_labels_of_runs_that_many_methods_share_stay_short() -> None:
    many = [Method("interpolate", {"alpha": alpha}) for alpha in (0.25, 0.5, 0.75)]
    arms = pairing.make_arms(_runs("run", FEEDBACK, SHADOW, *many, weights=("final",)))
    assert arms[0].label == "last iterate of EMA feedback, η\u00a00.25 + EMA shadow, η\u00a00.25 + 3 more beside it"


def test_the_base_model_parts_the_runs_of_methods_that_use_it_and_no_others() -> None:
    for method, arms in ((Method("asft", {"strength": 1.0}), 2), (Method("l2sp", {"strength": 1.0}), 1)):
        runs = _runs("a", method, base_model="x") + _runs("b", method, base_model="y")
        assert len(pairing.make_arms(runs)) == arms
    plain, aligned = _runs("plain"), _runs("a", Method("asft", {"strength": 1.0}), base_model="x")
    contrast, named = _contrast(plain + aligned, "asft")
    assert contrast.control is not None and named[contrast.control].runs[0] == "plain-0"
