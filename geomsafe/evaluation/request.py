"""What a user asks of `evaluate`: prompts, judges, measures and settings, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from geomsafe.errors import ConfigError
from geomsafe.evaluation.choosing import Choosing
from geomsafe.evaluation.judges import JudgeSpec, named_judge
from geomsafe.evaluation.measuring import Measure
from geomsafe.evaluation.suite_file import SuiteSpec
from geomsafe.evaluation.suites import parse_suite
from geomsafe.records import Measurement

SETTINGS: dict[str, str | None] = {
    "max_new_tokens": "max_new_tokens",
    "batch_size": "eval_batch_size",
    "limit": "eval_limit",
    "dtype": "dtype",
    "device": "device",
    "system_prompt": "system_prompt",
    "chat_template": "chat_template",
    "trust_remote_code": "trust_remote_code",
    "temperature": None,
    "top_p": None,
    "seed": None,
}
"""What may be given beside prompts and judges, and the field of a run's settings that it changes."""

PERPLEXITY = "perplexity"
"""The judge that asks theta_0 of a run."""


@dataclass(frozen=True)
class Request:
    """What a user asks for, apart from the model.

    Attributes:
        prompts: "kind=source" or known names.
        suite: "quick", "full" or a suite file, in place of `prompts`.
        judges: judges of refusal where the suite names none.
        whole_answers: let every answer run to its end, also where the verdicts are settled before.
        leave_out_long: leave out prompts that fill the model's context.
        given: of `SETTINGS`, what was given.
        measures: what is measured beside prompt sets.
        measured: called with each measurement as it is there.
    """

    prompts: tuple[str, ...]
    suite: str | None
    judges: tuple[JudgeSpec, ...]
    whole_answers: bool
    leave_out_long: bool
    given: dict[str, Any]
    measures: tuple[Measure, ...]
    measured: Callable[[Measurement], None]

    def check(self) -> None:
        """Find slips of the pen before a model is loaded.

        Raises:
            ConfigError: a setting is unknown, or prompts are named twice.
        """
        unknown = sorted(set(self.given) - set(SETTINGS))
        if unknown:
            raise ConfigError(f"setting '{unknown[0]}' is unknown: choose from {', '.join(SETTINGS)}")
        if self.suite is not None and self.prompts:
            raise ConfigError("prompts are named twice, by a suite and one by one: write them all into the suite file")
        for text in self.prompts:
            parse_suite(text)
        for judge in self.refusal_judges or ():
            named_judge(judge)

    def config(self) -> dict[str, Any]:
        """Return what changes the settings of a run."""
        named = {
            field: self.given[name] for name, field in SETTINGS.items() if field is not None and name in self.given
        }
        return named | ({"eval_prompts": list(self.prompts)} if self.prompts else {})

    def setting(self, name: str, spec: SuiteSpec | None, otherwise: Any) -> Any:
        """Return a setting: as given, else of the suite file, else the run's."""
        of_suite = getattr(spec, name, None)
        return self.given.get(name, of_suite if of_suite is not None else otherwise)

    @property
    def refusal_judges(self) -> tuple[JudgeSpec, ...] | None:
        """The judges that were named, without the one that asks theta_0; None for the usual ones."""
        return tuple(judge for judge in self.judges if judge != PERPLEXITY) or None

    def choosing(self, spec: SuiteSpec | None) -> Choosing:
        """Return how tokens are chosen."""
        return Choosing(
            self.setting("temperature", spec, 0.0), self.setting("top_p", spec, 1.0), self.setting("seed", spec, 0)
        )
