"""Attempts that cost a search are made once: GCG spends minutes on a prompt.

    evaluations/<weights>--<suite>.jsonl.attempts

They depend on the weights, so the file is used only while its first line names the same model, prompts and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from geomsafe.data import Prompt
from geomsafe.evaluation.attacks import Attack, Attempt
from geomsafe.evaluation.gcg import Gcg
from geomsafe.evaluation.identity import model_sha256
from geomsafe.evaluation.journal import Journal
from geomsafe.models import Loaded


def attempts_of(
    attack: Attack,
    prompts: Sequence[Prompt],
    loaded: Loaded | None,
    system_prompt: str | None,
    path: Path,
    progress: Callable[[int, int], None],
) -> list[Attempt]:
    """Return one attempt a prompt, those that were searched for before from where they are kept.

    Args:
        attack: how the prompts are put.
        prompts: the prompts.
        loaded: the model that is attacked.
        system_prompt: system turn of prompts that have none.
        path: where attempts that cost a search are kept.
        progress: called as they are found.

    Returns:
        The attempts, in the order of the prompts.
    """
    if not isinstance(attack, Gcg) or loaded is None:
        return attack.attempts(prompts, loaded)
    search = replace(attack, system_prompt=system_prompt)
    identity = {
        "model": model_sha256(loaded.model),
        "template_sha256": loaded.template_sha256,
        "system_prompt": system_prompt,
        "prompts": [[prompt.id, prompt.target, prompt.reference] for prompt in prompts],
        "attack": search.settings(),
    }
    with Journal(path, identity) as journal:
        for index, prompt in enumerate(prompts):
            if index not in journal.entries:
                (found,) = search.attempts([prompt], loaded)
                journal.add(index, asdict(found))
            progress(index + 1, len(prompts))
        kept = [journal.entries[index] for index in range(len(prompts))]
    return [Attempt(entry["text"], entry["opening"], tuple(entry["opening_ids"])) for entry in kept]
