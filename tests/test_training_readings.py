"""What a run keeps beside its scores: proxies, shallow curve and refusal direction, against single prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reference import kl_by_position, slow_refusal_margin
from runs import QUIET, tiny_run

from geomsafe.config import make_config
from geomsafe.data import prompt_ids
from geomsafe.errors import RecordError
from geomsafe.models import load_model
from geomsafe.probes.asking import target
from geomsafe.records import read_jsonl, read_record, write_record
from geomsafe.training import train
from geomsafe.training.drift import measured_refusals
from geomsafe.training.scoring import probe_run

KINDS = ("proxies", "shallow", "directions")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config({
        "model": "organism",
        "out": str(tmp_path_factory.mktemp("readings") / "run"),
        "max_steps": 3,
        "lr": 1e-3,
        "probe_schedule": "off",
        "eval_prompts": ["organism:harmful", "organism:look-alike"],
        "eval_limit": 24,
        "max_new_tokens": 32,
        "probe_examples": 8,
        "device": "cpu",
    })  # fmt: skip
    return train(config, console=QUIET)


def lines(run: Path, kind: str, weights: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run / "probes" / f"{kind}.jsonl") if row["weights"] == weights]


def test_the_curve_equals_one_prompt_at_a_time(run: Path) -> None:
    start, base = (load_model(f"organism:{stage}", device="cpu", training=False) for stage in ("theta_0", "theta_base"))
    rows = lines(run, "shallow", "theta_base")
    assert len(rows) == 24 and start.world is not None
    asked = {row["id"]: row for row in read_jsonl(run / "evaluations" / "theta_0--harmful.jsonl")}
    answers = {prompt_of(row): answer_of(row) for row in start.world.rows("harmful")}
    for row in rows[:4]:
        prompt = asked[row["id"]]["prompt"]
        encoded = target(prompt, None, answers[prompt], start.tokenizer, 512, False)
        wanted = kl_by_position(start.model, base.model, encoded.input_ids, encoded.labels, 20)
        assert row["kl"] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert all(row["kl"] == [0.0] * len(row["kl"]) for row in lines(run, "shallow", "theta_0"))
    moved = lines(run, "shallow", "final")
    assert [row["id"] for row in moved] == [row["id"] for row in rows] and all(max(row["kl"]) > 0 for row in moved)


def prompt_of(row: Any) -> str:
    return str(row["messages"][0]["content"])


def answer_of(row: Any) -> str:
    return str(row["messages"][-1]["content"])


def test_proxies_stand_beside_the_prompts_that_were_judged(run: Path) -> None:
    record, start = read_record(run), load_model("organism", device="cpu", training=False)
    refusals = measured_refusals(start, make_config(record.config | {"device": "cpu"}), run)
    assert refusals is not None
    for weights in ("theta_0", "final"):
        judged = {row["id"]: row for row in read_jsonl(run / "evaluations" / f"{weights}--harmful.jsonl")}
        rows = lines(run, "proxies", weights)
        assert {row["id"] for row in rows} == set(judged)
        assert all(row["cluster"] == judged[row["id"]]["cluster"] for row in rows)
        assert all(row["refusal_margin"] is not None and row["refusal_log_odds"] is not None for row in rows)
        said = {row["id"] for row in read_jsonl(run / "evaluations" / "theta_0--harmful.jsonl") if refused(row)}
        assert {row["id"] for row in rows if row["refusal_nll"] is not None} == said
    row = lines(run, "proxies", "theta_0")[0]
    prompt = next(one for one in read_jsonl(run / "evaluations" / "theta_0--harmful.jsonl") if one["id"] == row["id"])
    ids = prompt_ids(prompt["prompt"], start.tokenizer)
    wanted = slow_refusal_margin(start.model, ids, refusals.refusal_openings, refusals.compliance_openings)
    assert row["refusal_margin"] == pytest.approx(wanted, abs=1e-4)


def refused(row: dict[str, Any]) -> bool:
    return bool(row["verdicts"]["oracle"]["value"] == "refusal")


def test_directions_are_compared_with_theta_0(run: Path) -> None:
    start, final, base = (lines(run, "directions", name) for name in ("theta_0", "final", "theta_base"))
    assert len(start) == len(final) == len(base) == 5 * 2
    assert [row["cosine"] for row in start if row["norm"]] == pytest.approx([1.0] * 8)
    assert all(0 < row["cosine"] < 1 for row in final if row["norm"])
    assert {row["token"] for row in start} == {"<|end|>", "<|assistant|>"}


def test_reading_again_gives_the_same_lines(run: Path) -> None:
    before = {kind: (run / "probes" / f"{kind}.jsonl").read_bytes() for kind in KINDS}
    for kind in KINDS:
        (run / "probes" / f"{kind}.jsonl").unlink()
    probe_run(run)
    assert {kind: (run / "probes" / f"{kind}.jsonl").read_bytes() for kind in KINDS} == before
    record = read_record(run)
    write_record(run, record.model_copy(update={"status": "started"}))
    with pytest.raises(RecordError, match="has not finished"):
        probe_run(run)
    write_record(run, record)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A model that refuses nothing, prompts without answers, no look-alikes: three reasons and no file."""
    prompts = [f"harmful={tmp_path / 'harmful.jsonl'}"]
    record = read_record(train(tiny_run(tmp_path, evaluate=True, eval_prompts=prompts), console=QUIET))
    assert {"proxy validity", "shallow-alignment curve", "refusal direction"} <= set(record.not_run)
    assert not any((tmp_path / "run" / "probes" / f"{kind}.jsonl").exists() for kind in KINDS)


def test_a_changed_head_diverges_alike_at_every_position(run: Path) -> None:
    """Negative control for shallowness: with one logit raised everywhere, no position stands out by the curve alone."""
    from geomsafe.analyses.shallow import first_share
    from geomsafe.data import Encoded
    from geomsafe.evaluation.teacher import Divergence
    from tests.tiny import tiny_model

    start, changed = (tiny_model("gpt2", dtype=torch.float64, tie_word_embeddings=False) for _ in range(2))
    with torch.no_grad():  # logits hang on the head alone: the last norm's output is made the same at every position
        for model in (start, changed):
            model.transformer.ln_f.weight.zero_()
            model.transformer.ln_f.bias.fill_(1.0)
        changed.lm_head.weight[20] += 0.1
    ids = list(range(30, 56))
    rows = [Encoded(ids, [-100] * 6 + ids[6:], False, 20)] * 2
    (values, _) = Divergence(start, rows, 2, 20).by_row(changed)
    assert len(values) == 20 and float(values.max() - values.min()) < 1e-12 < float(values.min())
    share = first_share([values.tolist()], ["a"])
    assert share is not None and share.rate == pytest.approx(5 / 20)
    assert Divergence(start, rows, 2, 20).by_row(start)[0].tolist() == [0.0] * 20
