"""Capture files as analyses need them. Two schemas, one set of questions; arrays are read when asked for.

`geomsafe.capture/2` holds the Gram matrix of single examples; `/1` that of blocks of examples,
and then a block stands where an example would: an independent unit with its token count.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from geomsafe.analyses.samples import Sample
from geomsafe.errors import RecordError

SCHEMAS = ("geomsafe.capture/1", "geomsafe.capture/2")
CONTROLS = ("sham", "benign")
"""Sets that stand beside safety: a harmless behaviour learnt like it, and benign answers of equal length."""


@dataclass(frozen=True)
class Capture:
    """What the probes measured at one step.

    Attributes:
        path: the file.
        version: 1 or 2.
        step: optimizer steps taken.
        names: parameters, in the order of every `params` axis.
        sizes: numbers in each parameter.
        sets: measured sets, in the order of the Gram's axes.
        metadata: the rest, decoded.
        keys: names of the arrays in the file.
    """

    path: Path
    version: int
    step: int
    names: list[str]
    sizes: list[int]
    sets: list[str]
    metadata: dict[str, Any] = field(repr=False)
    keys: frozenset[str] = field(repr=False)

    @property
    def parameters(self) -> int:
        """Numbers in all measured parameters."""
        return sum(self.sizes)

    @property
    def prompt_ids(self) -> list[str]:
        """Ids of the safety prompts."""
        return list(self.metadata.get("prompt_ids", []))

    @property
    def nulls(self) -> list[str]:
        """Null sets whose spectra were measured."""
        named = self.metadata.get("nulls", [])
        return [name for name in named if any(key.startswith(f"{name}_singular_values/") for key in self.keys)]

    def get(self, name: str) -> NDArray[np.float64] | None:
        """Read an array as float64.

        Args:
            name: as in the file.

        Returns:
            The array, or None where it was not measured.
        """
        return self._read([name])[0] if name in self.keys else None

    def under(self, prefix: str) -> dict[str, NDArray[np.float64]]:
        """Read all arrays of one kind.

        Args:
            prefix: such as "safety_basis"; the arrays are "safety_basis/<parameter>".

        Returns:
            Parameter (or slice of one) -> array, in the order of the parameters.
        """
        place = {name: index for index, name in enumerate(self.names)}
        found = [key.removeprefix(f"{prefix}/") for key in self.keys if key.startswith(f"{prefix}/")]
        found.sort(key=lambda one: (place.get(one.split("[")[0], len(place)), len(one), one))
        return dict(zip(found, self._read([f"{prefix}/{name}" for name in found]), strict=True)) if found else {}

    def gram(self, *, preconditioned: bool = False) -> NDArray[np.float64] | None:
        """Return (params, n, n) inner products of token-summed gradients of all examples (or blocks)."""
        if preconditioned:
            return self.get("preconditioned_gram")
        return self.get("block_gram" if self.version == 1 else "example_gram")

    def sample(self, kind: str) -> Sample | None:
        """Return which rows of the Gram are a set, None where it was not measured.

        Args:
            kind: "safety", "utility", "sham" or "benign".
        """
        if kind not in self.sets:
            return None
        counts = [self._rows(name) for name in self.sets]
        index = self.sets.index(kind)
        start, count = sum(counts[:index]), counts[index]
        tokens = self.get(f"{kind}_tokens") if self.version == 1 else self.get("example_tokens")
        if tokens is None:
            return None
        clusters = self.metadata.get("clusters", {}).get(kind)
        return Sample(
            np.arange(start, start + count), tokens if self.version == 1 else tokens[start : start + count], clusters
        )

    def examples(self, kind: str) -> int | None:
        """Return the examples in a set or null, None where the capture does not say."""
        counts = {name: match.get("examples") for name, match in self.metadata.get("match", {}).items()}
        counts |= self.metadata.get("set_examples", {})
        # The untrained null is the safety set itself, on weights that nothing has trained.
        count = counts.get("safety" if kind == "untrained" and kind not in counts else kind)
        return None if count is None else int(count)

    @property
    def examples_a_unit(self) -> float | None:
        """Examples behind one row of the Gram: 1, or the mean of the blocks; None where not recorded."""
        if self.version == 2:
            return 1.0
        written = self.metadata.get("block_examples")
        sizes: list[int] = []
        for part in written.values() if isinstance(written, dict) else [written or []]:
            sizes.extend(part)
        return float(np.mean(sizes)) if sizes else None

    def dots(self, what: str, kind: str) -> NDArray[np.float64] | None:
        """Return (params,) inner products of a direction with a set's token-mean gradient.

        Args:
            what: "displacement" or "update".
            kind: the set.
        """
        if self.version == 1:
            return self.get(f"{what}_dot_{kind}")
        each, sample = self.get(f"{what}_dots"), self.sample(kind)
        if each is None or sample is None:
            return None
        return np.asarray(each[:, sample.rows].sum(axis=1) / sample.tokens.sum(), dtype=np.float64)

    def loss(self, kind: str) -> float | None:
        """Return a set's token-mean loss in nats."""
        if self.version == 1:
            found = self.get(f"{kind}_loss")
            return None if found is None else float(found)
        each, sample = self.get("example_losses"), self.sample(kind)
        if each is None or sample is None:
            return None
        return float(each[sample.rows].sum() / sample.tokens.sum())

    def _read(self, names: list[str]) -> list[NDArray[np.float64]]:
        try:
            with safe_open(self.path, framework="numpy") as stream:
                return [np.asarray(stream.get_tensor(name), dtype=np.float64) for name in names]
        except (OSError, SafetensorError) as error:
            raise RecordError(f"capture '{self.path}' cannot be read: {error}") from None

    def _rows(self, kind: str) -> int:
        if self.version == 1:
            tokens = self.get(f"{kind}_tokens")
            return 0 if tokens is None else len(tokens)
        return int(self.metadata["set_examples"][kind])


def read_capture(path: Path) -> Capture:
    """Read the head of one capture file.

    Args:
        path: captures/step-000120.safetensors.

    Returns:
        The capture; all arrays come as float64.

    Raises:
        RecordError: the file is broken or of another schema.
    """
    try:
        with safe_open(path, framework="numpy") as stream:
            metadata, keys = stream.metadata() or {}, frozenset(stream.keys())
    except (OSError, SafetensorError) as error:
        raise RecordError(f"capture '{path}' cannot be read: {error}") from None
    schema = metadata.get("schema")
    if schema not in SCHEMAS:
        raise RecordError(
            f"capture '{path}' has schema {schema!r}, this geomsafe reads '{SCHEMAS[0]}' and '{SCHEMAS[1]}'"
        )
    if metadata.get("convention") != "token-sum":
        raise RecordError(f"capture '{path}' has convention {metadata.get('convention')!r}, expected 'token-sum'")
    try:
        decoded = {key: _decoded(value) for key, value in metadata.items()}
        version = SCHEMAS.index(schema) + 1
        sets = decoded.get("sets", [kind for kind in ("safety", "utility") if f"{kind}_tokens" in keys])
        sizes = [math.prod(shape) for shape in decoded["shapes"]]
        found = Capture(path, version, int(metadata["step"]), decoded["parameters"], sizes, sets, decoded, keys)
        rows = {kind: found._rows(kind) for kind in sets}
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"capture '{path}' has broken metadata ({type(error).__name__}: {error})") from None
    if len(sizes) != len(found.names):
        raise RecordError(f"capture '{path}' has broken metadata ({len(found.names)} parameters, {len(sizes)} shapes)")
    tokens = found.get("example_tokens")
    if tokens is not None and len(tokens) != sum(rows.values()):
        raise RecordError(f"capture '{path}' has {len(tokens)} examples, its sets name {sum(rows.values())}")
    return found


def _decoded(text: str) -> Any:
    # A text is stored as it is, anything else as JSON.
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
