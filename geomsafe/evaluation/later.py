"""Judges that need a model or a server speak last, when the models that were scored are gone from memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from geomsafe.errors import ConfigError
from geomsafe.evaluation.coherence import PerplexityJudge
from geomsafe.evaluation.judging import case_of, judge_later
from geomsafe.evaluation.score import START, Progress, Scored
from geomsafe.evaluation.stored import read_stored, stored_files
from geomsafe.evaluation.verdicts import BatchJudge
from geomsafe.models import Loaded
from geomsafe.records import Evaluation, RunRecord


def finish(
    folder: Path, scored: Sequence[Scored], perplexity: PerplexityJudge | None, progress: Progress | None
) -> list[Evaluation]:
    """Let the judges speak that need a model or a server, now that the scored models are gone.

    Args:
        folder: the run directory.
        scored: evaluations, each with the judges that are still to speak on it.
        perplexity: one more judge for all of them.
        progress: called as verdicts come.

    Returns:
        The evaluations with all verdicts.
    """
    # Judges of equal settings are one: what is a model is loaded once.
    instances: dict[str, BatchJudge] = {}
    evaluations: list[Evaluation] = []
    for stored, later in scored:
        for judge in (*later, *([perplexity] if perplexity is not None else ())):
            one = instances.setdefault(json.dumps([judge.name, judge.settings()], sort_keys=True), judge)
            stored = judge_later(folder, stored, one, progress)
        evaluations.append(stored.evaluation)
    return evaluations


def perplexity_judge(
    folder: Path, load: Callable[[], Loaded], start: RunRecord, system_prompt: str | None
) -> PerplexityJudge:
    """Return the judge that asks theta_0 of a run how likely an answer is.

    Args:
        folder: where theta_0's own answers lie; its threshold comes from them.
        load: loads theta_0.
        start: the run's record.
        system_prompt: system turn of prompts that have none.

    Returns:
        The judge.

    Raises:
        ConfigError: theta_0's own answers are not there.
    """
    own = [
        case_of(row)
        for path in stored_files(folder)
        if path.name.startswith(f"{START}--") and (stored := read_stored(path)).evaluation.attack == "direct"
        for row in stored.rows
        if not row["stopped_early"]
    ]
    if not own:
        raise ConfigError(
            f"judge 'perplexity' compares with theta_0's own answers: score theta_0 of '{start.name}' too"
        )
    return PerplexityJudge(load, str(start.model.get("fingerprint")), own=own, system_prompt=system_prompt)
