"""The name of a run by its content: equal whatever decides its numbers, different where any of it differs.

What decides: the settings (threads among them: one and two threads round differently), the kind of device, this
version of geomsafe, and the content of every local file or folder that a setting names. What does not: where the run
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

NOT_DECISIVE = ("out", "report_to", "save_every")

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
    sources = [*(settings[key] for key in _PATHS), *(text.partition("=")[2] or text for text in config.eval_prompts)]
    content = {source: _content(source) for source in sources if source and Path(source).exists()}
    decisive = {"settings": settings, "device": device, "content": content, "geomsafe": __version__}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode("utf-8")).hexdigest()[:_LENGTH]


def _content(source: str) -> str:
    path = Path(source)
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
