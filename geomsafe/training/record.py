"""What a run says about itself: its name, its provenance, and opening it anew or again."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from geomsafe.config import TrainConfig, dump_config
from geomsafe.errors import RecordError
from geomsafe.records import RunRecord, read_record, sync_directory, write_record

NOT_DECISIVE = ("out", "report_to", "save_every")
"""Settings that change no number of a run."""

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")

# What `write_atomic` and `save_model` name their files before they are renamed.
_TEMPORARY = re.compile(r"\..+\.([a-z0-9_]{8}|old)")


def run_folder(config: TrainConfig) -> Path:
    """Return where a run goes.

    Args:
        config: the settings.

    Returns:
        `config.out`, else `runs/<method>-lr<lr>-b<batch>x<accumulation>-s<seed>`, where a method's
        options are part of its name: `ema-eta-0.5`.
    """
    if config.out is not None:
        return config.out
    written = "+".join(config.method) or "baseline"
    name = "".join("-" if character in ":,=/ " else character for character in written)
    return Path("runs") / f"{name}-lr{config.lr:g}-b{config.batch_size}x{config.accumulation}-s{config.seed}"


def require_free(folder: Path) -> None:
    """Make sure that a new run overwrites nothing.

    Args:
        folder: the run directory; may be missing or empty.

    Raises:
        RecordError: something is there, or the path is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordError(
            f"run directory '{folder}' exists and is not empty: continue it with --resume {folder}, "
            "or choose another with --out"
        )


def create_run(folder: Path, config: TrainConfig, device: torch.device) -> RunRecord:
    """Make the run directory, with config.yaml and a record that says `started`, at one stroke.

    Args:
        folder: the run directory.
        config: the settings.
        device: where the model is.

    Returns:
        The record.
    """
    record = RunRecord(
        name=folder.name,
        created=now(),
        config=config.model_dump(mode="json"),
        provenance=provenance(device),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        (temporary / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        write_record(temporary, record)
        os.chmod(temporary, 0o755)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(folder.parent)
    return record


def open_run(folder: Path, config: TrainConfig) -> RunRecord:
    """Read the record of a run that shall be continued.

    Args:
        folder: the run directory.
        config: the settings now; must be those of the run, save for what decides nothing: where it lies, what it
            reports to, and how often it saves a checkpoint.

    Returns:
        The record, with warnings where the software is not the one the run started with.

    Raises:
        RecordError: a setting differs; names it.
    """
    record = read_record(folder)
    current = config.model_dump(mode="json")
    for key, value in current.items():
        if key not in NOT_DECISIVE and record.config.get(key) != value:
            raise RecordError(
                f"'{folder}' was started with {key} = {record.config.get(key)!r}, not {value!r}: "
                "resume it with its own settings, or start a new run"
            )
    for package, before in record.provenance.get("packages", {}).items():
        if version(package) != before:
            warning = f"resumed with {package} {version(package)}, started with {before}: bitwise equality is not given"
            record.warnings = sorted({*record.warnings, warning})
    record.provenance.setdefault("resumed", []).append(now())
    return record


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process could not.

    Args:
        folder: the run directory.
    """
    for path in [path for path in folder.rglob(".*") if _TEMPORARY.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what the numbers may depend on beside the settings.

    Args:
        device: where the model is.

    Returns:
        JSON values: versions, machine, threads, determinism flags, command line.
    """
    return {
        "geomsafe": version("geomsafe"),
        "packages": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cuda": torch.version.cuda,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "command": list(sys.argv),
        "started": now(),
    }


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
