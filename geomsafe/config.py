"""The settings of a run: one flat, validated, documented model.

Every field is a command-line option of `geomsafe train` with dashes for
underscores, and a key of the YAML file that a run writes and can be started from.
The description of a field is the help text of its option.

What is not covered: which *values* a data set or a model accepts. That is found out
where the file or the model is opened.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from geomsafe.errors import ConfigError


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, assignment is validated."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


class MethodSpec(Settings):
    """One method and its options, written `name` or `name:key=value,key=value`."""

    name: str
    options: dict[str, str | int | float | bool] = {}

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """Read the one grammar used everywhere: `ema:eta=0.25,mode=feedback`.

        Args:
            text: the method as written on the command line or in YAML.

        Returns:
            The name and its typed options (true/false, integers, floats, else text).

        Raises:
            ConfigError: an option has no `=`, no name, or is given twice.
        """
        name, _, rest = text.partition(":")
        options: dict[str, str | int | float | bool] = {}
        for part in filter(None, (piece.strip() for piece in rest.split(","))):
            key, equals, value = part.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"method '{text}': option '{part}' is not key=value, as in 'ema:eta=0.25'")
            if key.strip() in options:
                raise ConfigError(f"method '{text}': option '{key.strip()}' is given twice")
            options[key.strip()] = _typed(value.strip())
        if not name.strip():
            raise ConfigError(f"method '{text}' has no name before ':', write it as in 'ema:eta=0.25'")
        return cls(name=name.strip(), options=options)

    def __str__(self) -> str:
        """Return the text that `parse` reads back."""
        if not self.options:
            return self.name
        written = ",".join(f"{key}={_written(value)}" for key, value in self.options.items())
        return f"{self.name}:{written}"


def _typed(text: str) -> str | int | float | bool:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _written(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class LoraSettings(Settings):
    """Low-rank adapters through peft: delta W = (alpha / rank) B A."""

    rank: int = Field(8, ge=1, description="LoRA rank r")
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="module names that get adapters")


class ColumnMap(Settings):
    """Which columns of a user's own file hold what; unset ones are recognised by name."""

    prompt: str | None = Field(default=None, description="column with the user's turn")
    response: str | None = Field(default=None, description="column with the assistant's turn")
    input: str | None = Field(default=None, description="column with extra context, appended to the prompt")
    system: str | None = Field(default=None, description="column with the system turn")
    messages: str | None = Field(default=None, description="column with a list of {role, content}")
    category: str | None = Field(default=None, description="column that groups the prompts")


class TrainConfig(Settings):
    """Everything that decides what `geomsafe train` does; the defaults fine-tune the organism."""

    # model
    model: str = Field("organism", description="'organism' (embedded), a hub name or a local folder")
    revision: str | None = Field(default=None, description="hub revision: branch, tag or commit")
    base_model: str | None = Field(
        default=None, description="theta_base, the model before alignment, for methods that need it (organism: its own)"
    )
    chat_template: Path | None = Field(default=None, description="Jinja file, for a tokenizer without chat template")
    system_prompt: str | None = Field(default=None, description="system turn for every conversation that has none")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype of the weights")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    trust_remote_code: bool = Field(False, description="run code that comes with a hub model")
    lora: LoraSettings | None = Field(default=None, description="train LoRA adapters instead of all weights")

    # data
    data: str = Field("organism:downstream-neutral", description="named data set or file to fine-tune on")
    columns: ColumnMap = Field(ColumnMap(), description="columns of the training file")
    data_limit: int | None = Field(default=None, ge=1, description="use only the first N rows")
    harmful_ratio: float = Field(
        0.0, ge=0, le=1, description="share of the training rows replaced by harmful questions with compliant answers"
    )
    harmful_data: str | None = Field(
        default=None, description="data set or file of such pairs (organism: its own), for harmful-ratio"
    )
    max_length: int = Field(512, ge=8, description="longest example in tokens; longer ones are cut and counted")
    safety_data: str | None = Field(
        default=None, description="harmful prompts for the probes (default: the organism's own)"
    )
    utility_data: str | None = Field(
        default=None,
        description="benign examples for the probes (default: the organism's own, else held-out training rows)",
    )
    refusal_text: str | None = Field(
        default=None, description="one stated refusal for all prompts that theta_0 refuses (default: its own answers)"
    )
    eval_prompts: list[str] = Field(
        default_factory=list,
        description="prompt sets to score, KIND=SOURCE: harmful, look-alike, utility, validation, retained or sham",
    )

    # method and optimisation
    method: list[str] = Field(default_factory=list, description="NAME[:key=value,...], in order; none = baseline")
    lr: float = Field(2e-5, ge=0, description="peak learning rate (2e-5: Qi et al. 2310.03693)")
    batch_size: int = Field(16, ge=1, description="examples in one forward pass")
    accumulation: int = Field(1, ge=1, description="forward passes in one optimizer step")
    epochs: float = Field(1.0, gt=0, description="passes over the data; max-steps overrides it")
    max_steps: int | None = Field(default=None, ge=1, description="number of optimizer steps")
    warmup: float = Field(0.0, ge=0, description="warm-up steps, or a share of all steps when below 1")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW(.9, .999, eps 1e-8) or plain SGD")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="learning rate after warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0 = no clipping")
    seed: int = Field(0, ge=0, description="seed of data order, dropout and everything else that is random")
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: torch's own choice); recorded")

    # probes
    probe_schedule: str = Field("log", description="'log' (0, 1, 2, 4, ... and the end), every N steps, or 'off'")
    probe_examples: int = Field(24, ge=4, description="examples in each probe set, of as many clusters as there are")
    probe_batch_size: int = Field(16, ge=1, description="examples in one forward pass of a probe")
    spectra: bool = Field(True, description="singular values of the mean gradients at the first and last probe")
    nulls: bool = Field(True, description="sham, benign anchor, nulls and single examples at the first and last probe")

    # scoring
    evaluate: bool = Field(True, description="score theta_0 and every saved weight set at the end")
    drift: bool = Field(
        True, description="also measure KL from theta_0, held-out losses and the margin of what is scored"
    )
    max_new_tokens: int = Field(512, ge=1, description="longest completion (512: Qi et al. 2310.03693)")
    eval_batch_size: int = Field(128, ge=1, description="prompts in one generation batch")
    eval_limit: int | None = Field(default=None, ge=1, description="score only the first N prompts of each set")

    # record
    out: Path | None = Field(default=None, description="run directory (default: runs/<method>-<settings>)")
    save_every: int | None = Field(default=None, ge=1, description="write a checkpoint for --resume every N steps")
    save_weights_at: list[int] = Field(default_factory=list, description="also save the weights after these steps")
    curve_points: int | None = Field(
        default=None,
        ge=2,
        description="also save and score the weights after so many log-spaced steps: the run's curve",
    )
    report_to: list[str] = Field(default_factory=list, description="trackers of transformers.Trainer, e.g. wandb")

    @field_validator("method", mode="before")
    @classmethod
    def _methods_parse(cls, value: Any) -> Any:
        written = [value] if isinstance(value, str) else value
        if isinstance(written, list):
            return [str(MethodSpec.parse(item)) if isinstance(item, str) else item for item in written]
        return written

    @field_validator("probe_schedule", mode="before")
    @classmethod
    def _schedule_known(cls, value: Any) -> Any:
        # YAML reads an unquoted off as false.
        text = "off" if value is False else str(value)
        if text not in {"log", "off"} and not (text.isdigit() and int(text) > 0):
            raise ValueError(f"'{text}' is not 'log', 'off' or a number of steps")
        return text

    @model_validator(mode="after")
    def _harmful_data_is_used(self) -> TrainConfig:
        if self.harmful_data is not None and not self.harmful_ratio:
            raise ValueError(f"harmful_data '{self.harmful_data}' is given and harmful_ratio is 0: set the ratio too")
        return self

    @property
    def methods(self) -> list[MethodSpec]:
        """The methods in the order in which they act."""
        return [MethodSpec.parse(text) for text in self.method]

    @property
    def effective_batch(self) -> int:
        """Examples in one optimizer step on one device."""
        return self.batch_size * self.accumulation


def load_config(path: Path) -> dict[str, Any]:
    """Read the keys of a YAML file, unvalidated, so that options can override them.

    Args:
        path: the YAML file, written by hand or by an earlier run.

    Returns:
        The mapping in the file, with run.json's keys as they are.

    Raises:
        ConfigError: the file is missing, not UTF-8, not YAML or not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file '{path}' does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config file '{path}' cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"config file '{path}' holds {type(loaded).__name__}, not 'key: value' lines")
    return loaded


def make_config(values: dict[str, Any]) -> TrainConfig:
    """Validate settings from YAML, the command line or Python.

    Args:
        values: setting names and values.

    Returns:
        The complete settings.

    Raises:
        ConfigError: a key is unknown (the near one is suggested) or a value does not fit.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explained(dict(problem)) for problem in error.errors())) from None


def dump_config(config: TrainConfig) -> str:
    """Return the YAML that reproduces `config`, every setting written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explained(problem: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]).replace("-", "_"), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see 'geomsafe train --help' for the known ones"
        return f"unknown setting '{where}': {hint}"
    reason = str(problem["msg"]).removeprefix("Value error, ")
    return f"setting '{where}' = {problem['input']!r}: {reason}" if where else reason


def _keys_beside(location: tuple[str | int, ...]) -> list[str]:
    nested: dict[str, type[Settings]] = {"lora": LoraSettings, "columns": ColumnMap}
    owner = nested.get(str(location[0]), TrainConfig) if len(location) > 1 else TrainConfig
    return list(owner.model_fields)
