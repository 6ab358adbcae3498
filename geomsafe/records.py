"""The run directory: the one place where stages meet, self-describing and versioned.

    run.json               this module's `RunRecord`
    config.yaml            the settings that reproduce the run
    steps.jsonl            one line an optimizer step
    captures/step-000120.safetensors
    weights/<name>/        complete save_pretrained folders
    probes/*.jsonl         what was read without generating: refusals, proxies, shallow curve, directions
    checkpoint/            what --resume needs; removed when the run has finished
    evaluations/<weights>--<suite>.jsonl
    measurements/<weights>--<name>.jsonl

and the folder of a sweep, which holds such directories:

    sweep.json             this module's `SweepRecord`
    runs/<id>/             one run directory each, named by the hash of what decides it

Whole files are written to a temporary name, synced and renamed, so a reader sees the
old file or the new one. A .jsonl is appended and flushed; `truncate_steps` cuts torn
or later lines when a run is resumed. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geomsafe.errors import RecordError

SCHEMA = "geomsafe.run/3"
READABLE = (SCHEMA, "geomsafe.run/2", "geomsafe.run/1")
"""Schema 2 knows no measurements and no attacks: all its evaluations are direct. Schema 1 has no `drift`, no
`total_steps` and no validation or sham suites either: it reads as a run without them."""

SWEEP_SCHEMA = "geomsafe.sweep/1"
SWEEP_FILE = "sweep.json"

Record = TypeVar("Record", bound=BaseModel)


class Failure(BaseModel):
    """Why a run did not finish."""

    model_config = ConfigDict(extra="forbid")
    cause: str
    step: int | None = None
    layer: str | None = None


class WeightSet(BaseModel):
    """One saved set of weights and where it lies relative to theta_0.

    `distance` is ||theta - theta_0||_2 over the trained model's effective weights (LoRA:
    of delta W), `relative_distance` that over ||theta_0||_2, and `alignment` the cosine
    of its displacement with that of the last iterate (1 for the last iterate itself).
    """

    model_config = ConfigDict(extra="forbid")
    path: str
    step: int
    distance: float
    relative_distance: float
    alignment: float | None = None


class Drift(BaseModel):
    """How far one weight set has moved from theta_0 in behaviour; None where there was nothing to measure it on.

    `kl_task`: mean of D(theta_0 || theta) in nats over the full vocabulary, at the answer positions of task prompts
    with answers sampled from theta_0. `kl_harmful`: the same at the first 5 answer positions of harmful prompts.
    `utility_loss` and `validation_loss`: negative log-likelihood of the references, nats per target token.
    `refusal_nll`: mean over harmful prompts of the mean negative log-likelihood of theta_0's own refusal;
    `refusal_margin`: mean over the same of logsumexp log p of refusal minus compliance openings, nats.
    `examples` counts the prompts behind each.
    """

    model_config = ConfigDict(extra="forbid")
    kl_task: float | None = None
    kl_harmful: float | None = None
    utility_loss: float | None = None
    validation_loss: float | None = None
    refusal_nll: float | None = None
    refusal_margin: float | None = None
    examples: dict[str, int] = Field(default_factory=dict)


class Evaluation(BaseModel):
    """One prompt set generated with one weight set and judged; the rows are in `file`.

    `scores` holds counts per judge: {"keyword-29": {"refusal": 3, "compliance": 297}}. `attack` says how the prompts
    were put; only "direct" ones are compared with benchmarks.
    """

    model_config = ConfigDict(extra="forbid")
    weights: str
    suite: str
    kind: Literal["harmful", "look-alike", "utility", "validation", "retained", "sham"]
    attack: str = "direct"
    source: str
    prompts_sha256: str
    file: str
    n: int
    scores: dict[str, dict[str, int]]
    settings: dict[str, Any]


class Measurement(BaseModel):
    """A measure of one weight set that is no count of verdicts; its rows, where it has any, are in `file`.

    All mappings go by metric, such as "acc" or "gsm8k/exact_match,strict-match". `values`: None where there is no
    number. `errors`: standard errors, `n`: units behind each value, and `higher_is_better`, each where it is known.
    `counts` holds what else was counted: tokens, clusters, ties, what was cut. `name` is unique for the weights.
    """

    model_config = ConfigDict(extra="forbid")
    weights: str
    name: str
    kind: Literal["choices", "held-out", "lm-eval", "mt-bench"]
    source: str
    values: dict[str, float | None]
    errors: dict[str, float | None] = Field(default_factory=dict)
    n: dict[str, int] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    higher_is_better: dict[str, bool] = Field(default_factory=dict)
    settings: dict[str, Any]
    file: str | None = None


class RunRecord(BaseModel):
    """The whole of run.json. Field names are format: a change takes a new schema version."""

    model_config = ConfigDict(extra="forbid")
    schema_version: str = SCHEMA
    name: str
    status: Literal["started", "finished", "failed"] = "started"
    created: str
    finished: str | None = None
    config: dict[str, Any]
    provenance: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    methods: list[dict[str, Any]] = Field(default_factory=list)
    steps: int = 0
    total_steps: int | None = None
    weights: dict[str, WeightSet] = Field(default_factory=dict)
    evaluations: list[Evaluation] = Field(default_factory=list)
    measurements: list[Measurement] = Field(default_factory=list)
    drift: dict[str, Drift] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    not_run: dict[str, str] = Field(default_factory=dict)
    failure: Failure | None = None


class SweepPoint(BaseModel):
    """One arm under one condition with one seed, and where its weights are: set `weights` of the directory `run`.

    `settings` are those in which the point differs from the sweep's base, without seed. Several points may share a
    run: methods that leave training alone take their weights from one fine-tune.
    """

    model_config = ConfigDict(extra="forbid")
    arm: str
    condition: str = ""
    seed: int
    settings: dict[str, Any]
    run: str
    weights: str


class SweepRecord(BaseModel):
    """The whole of sweep.json: which runs there are to be, fixed before the first of them begins.

    `reference` is the arm that all others are shown against; `controls` names for an arm the arms that could explain
    its effect away, the first being the matched control; `families` groups arms that a user would tune as one method.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: str = SWEEP_SCHEMA
    name: str
    created: str
    geomsafe: str
    source: dict[str, Any]
    reference: str | None = None
    controls: dict[str, list[str]] = Field(default_factory=dict)
    families: dict[str, str] = Field(default_factory=dict)
    points: list[SweepPoint]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: temporary file in the same folder, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp creates 0600; a record is as readable as any other file of the user.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut (no effect where unsupported)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_record(run: Path, record: RunRecord) -> None:
    """Write run.json atomically."""
    write_atomic(run / "run.json", record.model_dump_json(indent=2) + "\n")


def read_record(run: Path) -> RunRecord:
    """Read run.json.

    Args:
        run: the run directory.

    Returns:
        The record.

    Raises:
        RecordError: no run.json there, not JSON, another schema version, or a broken field.
    """  # noqa: DOC502
    missing = f"'{run}' is not a run directory: it has no run.json"
    return read_versioned(RunRecord, run / "run.json", missing, READABLE)


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is that of a sweep."""
    return (folder / SWEEP_FILE).is_file()


def write_sweep(folder: Path, record: SweepRecord) -> None:
    """Write sweep.json atomically."""
    write_atomic(folder / SWEEP_FILE, record.model_dump_json(indent=1) + "\n")


def read_sweep(folder: Path) -> SweepRecord:
    """Read sweep.json.

    Args:
        folder: the sweep's folder.

    Returns:
        The record.

    Raises:
        RecordError: no sweep.json there, not JSON, another schema version, or a broken field.
    """  # noqa: DOC502
    missing = f"'{folder}' is not a sweep: it has no {SWEEP_FILE}"
    return read_versioned(SweepRecord, folder / SWEEP_FILE, missing, (SWEEP_SCHEMA,))


def read_versioned(kind: type[Record], path: Path, missing: str, readable: Sequence[str]) -> Record:
    """Read a JSON file that names its schema.

    Args:
        kind: what it holds; the file's schema version is replaced by the first of `readable`.
        path: the file.
        missing: the message where there is no file.
        readable: schema versions that `kind` can be read from, the current one first.

    Returns:
        What it holds.

    Raises:
        RecordError: no file, not JSON, another schema version, or a broken field.
    """  # noqa: DOC502
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(missing) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"'{path}' is not JSON: {error}") from None
    version = loaded.get("schema_version") if isinstance(loaded, dict) else None
    if version not in readable:
        raise RecordError(
            f"'{path}' has schema {version!r}, this geomsafe reads {' and '.join(readable)}: rerun or upgrade geomsafe"
        )
    return validated(kind, loaded | {"schema_version": readable[0]}, f"'{path}'")


def validated(kind: type[Record], loaded: Any, where: str) -> Record:
    """Check what was read from a file.

    Args:
        kind: what it should be.
        loaded: JSON values.
        where: the place, for the message.

    Returns:
        It.

    Raises:
        RecordError: a field is broken; names the first.
    """
    try:
        return kind.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(f"{where}: field '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None


class JsonLines:
    """An append-only .jsonl, each line flushed to the operating system when written."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        """Write one line."""
        self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Sync to disk and close."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl that geomsafe wrote.

    Args:
        path: the file.

    Yields:
        One mapping a line.

    Raises:
        RecordError: the file is missing or a line is torn; names the line.
    """
    if not path.exists():
        raise RecordError(f"'{path}' is missing from the run directory")
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                raise RecordError(f"'{path}' line {number} is torn: resume or rerun the run") from None


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write all rows at once, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def truncate_steps(path: Path, last_step: int) -> None:
    """Keep the lines of steps.jsonl up to `last_step`; cut later ones and a torn tail."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] > last_step:
            break
        kept.append(line + "\n")
    write_atomic(path, "".join(kept))


def content_sha256(rows: Iterable[Any]) -> str:
    """Return the hex SHA-256 of rows in order, each as canonical JSON."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))
        digest.update(b"\n")
    return digest.hexdigest()
