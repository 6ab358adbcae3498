"""The name of a run by its content: equal whatever decides its numbers, different where any of it differs.

What decides: the settings (threads among them: one and two threads round differently), the kind of device, and this
version of geomsafe. A local file or folder that a setting or a method's option names counts by its content, not by
its name. What does not: where the run
lies, what it reports to, and how often it saves a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from geomsafe import __version__
from geomsafe.config import TrainConfig
from geomsafe.data.sources import parse_source
from geomsafe.evaluation.suites import parse_suite
from geomsafe.training.record import NOT_DECISIVE

_LENGTH = 16
_PATHS = ("model", "base_model", "chat_template", "data", "harmful_data", "safety_data", "utility_data")


def run_address(config: TrainConfig, device: str) -> str:
    """Hash what decides a run.

    Args:
        config: the settings, threads filled in.
        device: kind of device, such as "cpu" or "cuda".

    Returns:
        16 hexadecimal digits.
    """
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key not in NOT_DECISIVE}
    for key in _PATHS:
        settings[key] = _meant(settings[key])
    settings["eval_prompts"] = [[kind, _meant(source)] for kind, source in map(parse_suite, config.eval_prompts)]
    settings["method"] = [
        [method.name, sorted((key, _meant(value)) for key, value in method.options.items())]
        for method in config.methods
    ]
    decisive = {"settings": settings, "device": device, "geomsafe": __version__}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode("utf-8")).hexdigest()[:_LENGTH]


def _meant(value: Any) -> Any:
    """Return a setting; where it names a local file or folder, the content instead, and a label behind it."""  # noqa: DOC201
    if not isinstance(value, str) or not value:
        return value
    source = parse_source(value)
    path = Path(source.name).expanduser()
    return ["content", _content(path), source.label] if path.exists() else value


def _content(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    facts: list[Any] = [
        (str(file.relative_to(path)), _file_sha256(file, file.stat().st_mtime_ns, file.stat().st_size))
        for file in files
    ]
    return hashlib.sha256(json.dumps(facts).encode("utf-8")).hexdigest()


@lru_cache(maxsize=4096)
def _file_sha256(file: Path, changed: int, size: int) -> str:
    # Time and size are there so that the cache forgets a file that has changed.
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
