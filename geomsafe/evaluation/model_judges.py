"""Judges with models, made from what a user writes.

    {name: harmbench, type: generative, model: cais/HarmBench-Llama-2-13b-cls, template: harmbench-cls}
    {name: guard, type: server, model: meta-llama/Llama-Guard-3-8B, template: llama-guard-3,
     base_url: http://localhost:8000/v1}
    {name: rejection, type: classifier, model: ./classifier, template: completion,
     labels: {NORMAL: compliance, REJECTION: refusal}}

Nothing is loaded or sent before the first case.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from geomsafe.config import Settings
from geomsafe.errors import ConfigError
from geomsafe.evaluation.classifier_judge import ClassifierJudge
from geomsafe.evaluation.generative_judge import GenerativeJudge, ServerJudge
from geomsafe.evaluation.judge_model import JudgeModel
from geomsafe.evaluation.judge_templates import read_template
from geomsafe.evaluation.server import KEY_VARIABLE, ChatServer
from geomsafe.evaluation.verdicts import BatchJudge

Count = Annotated[int, Field(ge=1)]


class _Judge(Settings):
    """What every judge has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str = Field(min_length=1)


class _Local(_Judge):
    """What every judge on this machine has."""

    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    chat_template: Path | None = None

    def source(self) -> JudgeModel:
        """Return where the model is."""
        return JudgeModel(self.name, self.model, self.revision, self.dtype, self.device, self.chat_template)


class ClassifierSpec(_Local):
    """A text classifier, see `ClassifierJudge`."""

    type: Literal["classifier"]
    template: str = "pair"
    labels: dict[str, Literal["refusal", "compliance", "undecided"]] | None = None
    batch_size: Count = 32

    def judge(self) -> BatchJudge:
        """Return the judge."""
        return ClassifierJudge(self.name, self.source(), self.template, self.labels, self.batch_size)


class _Asked(_Judge):
    """What every judge that answers in words has."""

    template: str
    threshold: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: Count | None = None


class GenerativeSpec(_Asked, _Local):
    """A local causal language model, see `GenerativeJudge`."""

    type: Literal["generative"]
    batch_size: Count = 8

    def judge(self) -> BatchJudge:
        """Return the judge."""
        template = read_template(self.template, threshold=self.threshold, max_new_tokens=self.max_new_tokens)
        return GenerativeJudge(self.name, template, self.source(), self.batch_size)


class ServerSpec(_Asked):
    """A model behind a server, see `ServerJudge`. The key is in the environment, never in a file."""

    type: Literal["server"]
    base_url: str
    api_key_env: str = KEY_VARIABLE
    timeout: float = Field(default=600.0, gt=0)
    max_retries: int = Field(default=5, ge=0)
    concurrency: Count = 8
    max_completion_chars: Count | None = None

    def judge(self) -> BatchJudge:
        """Return the judge.

        Raises:
            ConfigError: the variable that is to hold the key is not set.
        """  # noqa: DOC201
        key = os.environ.get(self.api_key_env)
        if key is None and self.api_key_env != KEY_VARIABLE:
            raise ConfigError(f"environment variable {self.api_key_env} is not set: it should hold the server's key")
        server = ChatServer(
            self.base_url,
            self.model,
            api_key=key,
            timeout=self.timeout,
            max_retries=self.max_retries,
            concurrency=self.concurrency,
        )
        template = read_template(self.template, threshold=self.threshold, max_new_tokens=self.max_new_tokens)
        return ServerJudge(self.name, template, server, self.max_completion_chars)


KINDS: dict[str, type[ClassifierSpec] | type[GenerativeSpec] | type[ServerSpec]] = {
    "classifier": ClassifierSpec,
    "generative": GenerativeSpec,
    "server": ServerSpec,
}


def make_model_judge(spec: Mapping[str, Any]) -> BatchJudge:
    """Make a judge with a model.

    Args:
        spec: its name, its type (classifier, generative or server) and the fields of that type.

    Returns:
        The judge; it has also `release()` where it holds a model.

    Raises:
        ConfigError: a field is missing, unknown or out of range; names the judge and the field.
    """
    who = f"judge '{spec.get('name', '(without name)')}'"
    kind = spec.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{who}: field 'type' is {kind!r}: choose {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate(dict(spec)).judge()
    except ValidationError as error:
        raise ConfigError("; ".join(f"{who}: {_explained(dict(one), kind)}" for one in error.errors())) from None
    except ConfigError as error:
        said = str(error)
        raise ConfigError(said if said.startswith("judge '") else f"{who}: {said}") from None


def _explained(problem: dict[str, Any], kind: str) -> str:
    """Return what is wrong with a field, without its value: somebody may have written a key into the file."""
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"field '{where}' is unknown for type {kind}: it has {', '.join(KINDS[kind].model_fields)}"
    return f"field '{where}': {problem['msg']}"
