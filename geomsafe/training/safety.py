"""Put theta_0's refusals among the training rows of a run with the method `mix`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from geomsafe.config import TrainConfig
from geomsafe.data.encoding import Encoded
from geomsafe.errors import ConfigError
from geomsafe.methods import AnchorWanted, Method
from geomsafe.methods.mix import Mix
from geomsafe.records import content_sha256, write_atomic
from geomsafe.training.anchors import answered_examples
from geomsafe.training.prepare import Material


def mix_safety(config: TrainConfig, material: Material, methods: Sequence[Method], folder: Path) -> None:
    """Replace a share of the training rows by refusals, for each `mix` in order.

    Which rows make way is decided by their content. The refusals are kept in the run, `anchors/<method>.json`, so that
    a resumed run trains on the same.

    Args:
        config: the settings.
        material: theta_0, the suites, and the rows, which are changed; their number stays.
        methods: the methods, not yet started.
        folder: the run directory.

    Raises:
        ConfigError: the share is not even one row, or theta_0 refuses too little.
    """  # noqa: DOC502
    for method in methods:
        if isinstance(method, Mix):
            count = round(method.options.share * len(material.rows))
            if not count:
                raise ConfigError(
                    f"method {method.label}: share={method.options.share:g} of {len(material.rows)} rows is none: "
                    "raise it or train on more"
                )
            refusals = _refusals(config, material, method, min(count, method.options.anchors), folder)
            order = sorted(range(len(material.rows)), key=lambda index: (_digest(material.rows[index]), index))
            leaving = set(order[:count])
            kept = [row for index, row in enumerate(material.rows) if index not in leaving]
            material.rows = kept + [refusals[index % len(refusals)] for index in range(count)]
            method.mixed = count
            material.data[f"refusals of {method.label}"] = {
                "rows": count,
                "different": len(refusals),
                "target_tokens": sum(row.target_tokens for row in refusals),
                "tokens_sha256": content_sha256([[row.input_ids, row.labels] for row in refusals]),
            }


def _refusals(config: TrainConfig, material: Material, method: Mix, count: int, folder: Path) -> list[Encoded]:
    path = folder / "anchors" / f"{method.label}.json"
    if path.exists():
        return [Encoded(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    rows = answered_examples(config, material, AnchorWanted(method.options.anchor, count), f"method {method.label}")
    write_atomic(path, json.dumps([vars(row) for row in rows]) + "\n")
    return rows


def _digest(row: Encoded) -> str:
    return hashlib.sha256(json.dumps(row.input_ids).encode("ascii")).hexdigest()
