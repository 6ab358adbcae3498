"""Conflict from Grams of single examples: against loops, with planted truth, and with what must not be claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geomsafe.analyses import conflicts, jackknife, layers
from geomsafe.analyses.conflicts import Cosine, anchor_contrasts, claimed_conflicts, gradient_cosines
from geomsafe.analyses.samples import Sample, normalised
from geomsafe.errors import RecordError
from tests import reference

DIMENSION = 80


class Planted:
    """Token-summed gradients of safety, anchor and utility examples; cosines of the true means are given."""

    def __init__(
        self,
        seed: int,
        *,
        safety: float = -0.4,
        anchor: float = 0.3,
        noise: float = 0.6,
        sizes: tuple[int, int, int] = (12, 12, 16),
        copies: int = 1,
        dimension: int = DIMENSION,
    ) -> None:
        rng = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(rng.normal(size=(dimension, 3)))
        means = [
            safety * basis[:, 0] + math.sqrt(1 - safety**2) * basis[:, 1],
            anchor * basis[:, 0] + math.sqrt(1 - anchor**2) * basis[:, 2],
            basis[:, 0],
        ]
        self.tokens: list[np.ndarray] = []
        self.clusters: list[list[str]] = []
        self.gradients: list[np.ndarray] = []
        for name, mean, size in zip("sau", means, sizes, strict=True):
            tokens = rng.integers(5, 30, size).astype(float)
            per_token = [mean + noise * rng.normal(size=dimension) * math.sqrt(16 / dimension) for _ in range(size)]
            # Copies of an example share their noise: phrasings of one action.
            self.gradients.append(np.array([per_token[i // copies] * n for i, n in enumerate(tokens)]))
            self.tokens.append(tokens)
            self.clusters.append([f"{name}{i // copies}" for i in range(size)])

    @property
    def gram(self) -> np.ndarray:
        stacked = np.concatenate(self.gradients)
        return stacked @ stacked.T

    def sample(self, which: int, clustered: bool = False) -> Sample:
        start = sum(len(one) for one in self.tokens[:which])
        rows = np.arange(start, start + len(self.tokens[which]))
        return Sample(rows, self.tokens[which], self.clusters[which] if clustered else None)


@pytest.mark.parametrize("convention", ["token-mean", "example-mean"])
@pytest.mark.parametrize("copies", [1, 2])
def test_every_layer_equals_the_loop_over_examples(convention: str, copies: int) -> None:
    """Cosine, error, reliability and noise of single examples, pooled by cluster, in both conventions."""
    planted = [Planted(seed, copies=copies, noise=0.3) for seed in range(3)]
    # One token count and one clustering for all layers, as in a capture.
    for one in planted[1:]:
        one.gradients = [
            g * (ours / theirs)[:, None]
            for g, ours, theirs in zip(one.gradients, planted[0].tokens, one.tokens, strict=True)
        ]
    grams = np.array([np.concatenate(one.gradients) @ np.concatenate(one.gradients).T for one in planted])
    first = planted[0]
    found = gradient_cosines(
        grams,
        first.sample(0, True),
        first.sample(2, True),
        convention=convention,  # type: ignore[arg-type]
    )
    for one, layer in zip(found, planted, strict=True):
        pools = [
            reference.pooled_gradients(
                layer.gradients[w], first.tokens[w], first.clusters[w], convention == "token-mean"
            )
            for w in (0, 2)
        ]
        arguments = (pools[0][0], pools[1][0], pools[0][1], pools[1][1])
        assert one.cosine == pytest.approx(reference.u_cosine(*arguments), rel=1e-9)
        units = min(len(pools[0][0]), len(pools[1][0]))
        assert one.floor is not None
        assert one.floor / conflicts.stats.t.ppf(0.975, units - 1) == pytest.approx(
            reference.u_cosine_deviation(*arguments), rel=1e-9
        )
        example = np.mean([float(g @ g) / n**2 for g, n in zip(layer.gradients[0], first.tokens[0], strict=True)])
        assert one.safety_noise == pytest.approx(
            example / reference.u_statistic(pools[0][0], pools[0][1]) - 1, rel=1e-9
        )
        if units <= 9:
            assert one.safety_reliability == pytest.approx(reference.split_half_reliability(pools[0][0]), rel=1e-9)


def test_clusters_widen_the_interval_and_pooled_copies_do_not_narrow_it() -> None:
    """Negative control: copies taken for independent examples make U too large and the interval too narrow."""
    right, wrong = [], []
    for seed in range(150):
        planted = Planted(seed, copies=3, sizes=(24, 24, 24), noise=0.4, dimension=400)
        for clustered, found in ((True, right), (False, wrong)):
            one = gradient_cosines(planted.gram[None], planted.sample(0, clustered), planted.sample(2, clustered))[0]
            if one.low is not None and one.high is not None:
                found.append((one.cosine, one.low <= -0.4 <= one.high))
    assert len(wrong) == 150 and len(right) >= 140
    assert np.mean([value for value, _ in right]) == pytest.approx(-0.4, abs=0.03)
    assert np.mean([covered for _, covered in right]) >= 0.88
    assert np.mean([value for value, _ in wrong]) > -0.36
    assert np.mean([covered for _, covered in wrong]) < np.mean([covered for _, covered in right]) - 0.05


def test_noise_does_not_attenuate_the_cosine_of_examples() -> None:
    """Science's own case: true -.3, tr Sigma = 16 |mu|^2, 32 examples: raw reads about half, the U-statistic all."""
    found = []
    for seed in range(150):
        planted = Planted(seed, safety=-0.3, noise=1.0, sizes=(32, 3, 32), dimension=2000)
        found += gradient_cosines(planted.gram[None], planted.sample(0), planted.sample(2), convention="example-mean")
    defined = [one for one in found if one.cosine is not None]
    assert len(defined) == len(found)
    assert np.mean([one.cosine for one in defined]) == pytest.approx(-0.3, abs=0.01)
    assert -0.25 < float(np.mean([one.raw for one in defined])) < -0.15
    assert np.mean([one.safety_noise for one in defined]) == pytest.approx(16, rel=0.1)
    assert np.mean([one.low <= -0.3 <= one.high for one in defined]) >= 0.9


def test_contrast_equals_the_three_sample_jackknife() -> None:
    planted = Planted(3)
    found = anchor_contrasts(planted.gram[None], *(planted.sample(which) for which in range(3)))[0]
    difference, deviation = reference.anchor_contrast_deviation(planted.gradients, planted.tokens)
    assert found.difference == pytest.approx(difference, rel=1e-9)
    assert found.high is not None and found.difference is not None
    assert found.high - found.difference == pytest.approx(conflicts.stats.t.ppf(0.975, 11) * deviation, rel=1e-8)
    alone = gradient_cosines(planted.gram[None], planted.sample(1), planted.sample(2))[0]
    assert found.anchor == pytest.approx(alone.cosine, rel=1e-9)


def _claims(safety: float, anchor: float, layers_: int = 20, seed: int = 0) -> list[bool | None]:
    first = Planted(seed)
    grams = []
    for layer in range(layers_):
        one = Planted(1000 * seed + layer, safety=safety, anchor=anchor, noise=0.5)
        scaled = [
            g * (ours / theirs)[:, None]
            for g, ours, theirs in zip(one.gradients, first.tokens, one.tokens, strict=True)
        ]
        grams.append(np.concatenate(scaled) @ np.concatenate(scaled).T)
    sets = [first.sample(which) for which in range(3)]
    cosines = gradient_cosines(np.array(grams), sets[0], sets[2])
    return claimed_conflicts(cosines, anchor_contrasts(np.array(grams), *sets))


def test_a_conflict_needs_both_rules() -> None:
    """Planted: opposed to utility and more so than the anchor. Either one alone is not claimed."""
    assert np.mean([bool(one) for one in _claims(-0.5, 0.2)]) > 0.9
    assert not any(_claims(-0.5, -0.5)), "the anchor is as opposed: nothing special to safety"
    assert not any(_claims(0.5, 0.9)), "above the anchor's, yet not opposed"
    assert not any(_claims(0.0, 0.0))


def test_no_anchor_no_claim() -> None:
    planted = Planted(0)
    cosines = gradient_cosines(planted.gram[None], planted.sample(0), planted.sample(2))
    assert cosines[0].high is not None and cosines[0].high < 0
    assert claimed_conflicts(cosines, None) == [None]
    noisy = Planted(0, noise=40.0)
    sets = [noisy.sample(which) for which in range(3)]
    contrast = anchor_contrasts(noisy.gram[None], *sets)
    assert contrast[0].difference is None and "not told from noise" in contrast[0].reason
    assert claimed_conflicts(gradient_cosines(noisy.gram[None], sets[0], sets[2]), contrast) == [False]


def test_the_trigger_is_no_claim() -> None:
    """Orthogonal means trigger SPF in about half of all samples, and are called a conflict in next to none."""
    triggered = claimed = 0
    for seed in range(100):
        planted = Planted(seed, safety=0.0, anchor=0.0, noise=0.5)
        sets = [planted.sample(which) for which in range(3)]
        cosines = gradient_cosines(planted.gram[None], sets[0], sets[2])
        triggered += bool(cosines[0].spf_trigger)
        claimed += bool(claimed_conflicts(cosines, anchor_contrasts(planted.gram[None], *sets))[0])
    assert 30 <= triggered <= 70
    assert claimed <= 5
    assert Cosine().spf_trigger is None


def test_an_undefined_cosine_says_how_many_examples_would_tell() -> None:
    """With half as many again as it says, the cosine is defined; with as many as there were, often not."""
    with_as_many, with_more, cases = 0, 0, 0
    for seed in range(40):
        few = Planted(seed, noise=0.4, sizes=(300, 3, 12), dimension=6)
        found = gradient_cosines(few.gram[None], few.sample(0), few.sample(2))[0]
        if found.cosine is not None:
            continue
        cases += 1
        times = float(found.reason.split("about ")[1].split(" times")[0])
        for size in (12, math.ceil(1.5 * 12 * times)):
            again = Planted(500 + seed, noise=0.4, sizes=(300, 3, size), dimension=6)
            defined = gradient_cosines(again.gram[None], again.sample(0), again.sample(2))[0].cosine is not None
            with_as_many += defined and size == 12
            with_more += defined and size > 12
    assert cases >= 10
    assert with_more >= 0.9 * cases and with_as_many <= 0.6 * cases


def test_a_preconditioner_changes_the_geometry() -> None:
    """Gradients opposed only in a direction that P switches off do not conflict in update space."""
    planted = Planted(1, noise=0.2)
    stacked = np.concatenate(planted.gradients)
    shared = np.sum(planted.gradients[2], axis=0)
    shared /= np.linalg.norm(shared)
    precondition = np.eye(DIMENSION) - 0.999 * np.outer(shared, shared)
    raw, updates = gradient_cosines(
        np.array([stacked @ stacked.T, stacked @ precondition @ stacked.T]), planted.sample(0), planted.sample(2)
    )
    assert raw.cosine is not None and raw.cosine < -0.3
    assert updates.cosine is None or updates.cosine > -0.2


def test_sets_that_do_not_fit_are_named() -> None:
    planted = Planted(0)
    with pytest.raises(RecordError, match="has no rows for 40 examples"):
        gradient_cosines(planted.gram[None, :30, :30], planted.sample(0), planted.sample(2))
    short = planted.sample(0)._replace(clusters=["a"])
    with pytest.raises(RecordError, match="12 Gram rows, 12 token counts and 1 clusters"):
        gradient_cosines(planted.gram[None], short, planted.sample(2))
    one_cluster = planted.sample(0)._replace(clusters=["a"] * 12)
    assert "fewer than 3" in gradient_cosines(planted.gram[None], one_cluster, planted.sample(2))[0].reason


def test_example_means_are_the_scaled_gram() -> None:
    planted = Planted(2)
    tokens = np.concatenate(planted.tokens)
    means = np.concatenate(planted.gradients) / tokens[:, None]
    assert normalised(planted.gram, tokens) == pytest.approx(means @ means.T, rel=1e-12, abs=1e-12)
    by_example = gradient_cosines(planted.gram[None], planted.sample(0), planted.sample(2), convention="example-mean")
    by_token = gradient_cosines(planted.gram[None], planted.sample(0), planted.sample(2))
    assert by_example[0].cosine != pytest.approx(by_token[0].cosine, rel=1e-4)


def test_many_halves_are_a_fair_sample() -> None:
    """Above nine units halves are drawn: each unit is in about half of them, and no one pair sticks together."""
    chosen = jackknife._halvings(32)
    assert chosen.sum(axis=1) == pytest.approx(np.full(len(chosen), 16))
    assert abs(chosen[:, 1:].mean(axis=0) - 16 / 31).max() < 0.15
    together = chosen[:, 1:].T @ chosen[:, 1:] / len(chosen)
    assert together[np.triu_indices(31, 1)].max() < 0.45


# --- module kinds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embed"),
        ("transformer.wpe.weight", "embed"),
        ("lm_head.weight", "head"),
        ("model.layers.0.self_attn.q_proj.weight", "q"),
        ("model.layers.0.self_attn.q_proj.bias", "q"),
        ("model.layers.0.self_attn.k_proj.weight", "k"),
        ("model.layers.0.self_attn.v_proj.weight", "v"),
        ("model.layers.0.self_attn.o_proj.weight", "o"),
        ("model.layers.0.self_attn.qkv_proj.weight", "qkv"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", "qkv"),
        ("gpt_neox.layers.0.attention.dense.weight", "o"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "up"),
        ("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", "down"),
        ("transformer.h.3.attn.c_attn.weight", "qkv"),
        ("transformer.h.3.attn.c_proj.bias", "o"),
        ("transformer.h.3.mlp.c_fc.weight", "up"),
        ("transformer.h.3.mlp.c_proj.weight", "down"),
        ("transformer.h.3.ln_1.weight", "norm"),
        ("transformer.ln_f.bias", "norm"),
        ("model.layers.0.mlp.gate_up_proj.weight", "gate_up"),
        ("model.layers.0.mlp.experts.gate_up_proj", "gate_up"),
        ("model.layers.0.mlp.experts.down_proj[3]", "down"),
        ("model.layers.2.block_sparse_moe.experts.5.w1.weight", "gate"),
        ("model.layers.2.block_sparse_moe.experts.5.w2.weight", "down"),
        ("model.layers.2.block_sparse_moe.experts.5.w3.weight", "up"),
        ("model.layers.2.block_sparse_moe.gate.weight", "router"),
        ("model.layers.2.mlp.gate_proj.weight", "gate"),
        ("model.layers.2.self_attn.q_norm.weight", "norm"),
        ("model.layers.2.post_attention_layernorm.weight", "norm"),
        ("model.norm.weight", "norm"),
        ("model.decoder.layers.1.fc2.weight", "down"),
        ("score.weight", "other"),
    ],
)
def test_kinds_are_read_from_names(name: str, kind: str) -> None:
    assert layers.module_kind(name) == kind


def test_groups_add_up_to_the_whole() -> None:
    names = [f"model.layers.{i}.{m}.weight" for i in range(3) for m in ("self_attn.q_proj", "mlp.up_proj")]
    names.append("model.norm.weight")
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(5, 7)) for _ in names]
    grams = np.array([one @ one.T for one in gradients])
    whole = np.concatenate(gradients, axis=1)
    for groups in (layers.by_layer(names), layers.by_kind(names)):
        assert layers.summed(grams, groups).sum(axis=0) == pytest.approx(whole @ whole.T)
        assert sorted(index for group in groups for index in group.indices) == list(range(len(names)))
    assert [group.label for group in layers.by_kind(names)] == ["q", "up", "norm"]
