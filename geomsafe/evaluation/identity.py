"""What decides a completion: two evaluations of equal identity have equal completions.

Weights count by their bytes, prompts by the token ids that the model sees (so template, system
prompt and tokenizer are in them), and everything that can round differently by name. Batch size is
left out: in float64 it changes nothing, in lower precision at most a near tie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from geomsafe.evaluation.decoding import context_length, ignored_processors, stop_token_ids, supports_dynamic_cache
from geomsafe.models import Loaded, fingerprint
from geomsafe.models.names import is_adapter_name

EVALUATION_VERSION = 1
"""Raised when the same input would give other completions or verdicts."""

# Of a model's config these say where it came from or how it is run, not what it computes.
_INCIDENTAL = {"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures"}


def decoding_settings(loaded: Loaded, max_new_tokens: int, system_prompt: str | None) -> dict[str, Any]:
    """Return every setting under which a model decodes, as it is recorded.

    Args:
        loaded: the model.
        max_new_tokens: longest answer.
        system_prompt: system turn before prompts that have none.

    Returns:
        JSON values only.
    """
    return {
        "version": EVALUATION_VERSION,
        "decoding": "greedy",
        "engine": "loop" if supports_dynamic_cache(loaded.model) else "generate",
        "max_new_tokens": max_new_tokens,
        "context": context_length(loaded.model),
        "stop_token_ids": sorted(stop_token_ids(loaded.model, loaded.tokenizer)),
        "ignored_processors": ignored_processors(loaded.model),
        "template_sha256": loaded.template_sha256,
        "system_prompt": system_prompt,
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def model_sha256(model: Any) -> str:
    """Hash the model as it is now: config, base weights, and adapters that change anything.

    Fresh LoRA adapters (B = 0) leave the model what it was, so theta_0 is the same with and without.

    Args:
        model: a plain model or a peft model.

    Returns:
        64 hexadecimal digits.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _INCIDENTAL}
    parts = [json.dumps(config, sort_keys=True, default=str), fingerprint(model)]
    added = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if is_adapter_name(name) or ".modules_to_save." in name
    }
    acting = [name for name in added if "lora_A" not in name and "lora_embedding_A" not in name]
    if any(bool(added[name].any()) for name in acting):
        parts += [_adapter_settings(settings) for settings in model.peft_config.values()]
        parts += [f"{name} {_tensor_sha256(added[name])}" for name in sorted(added)]
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()


def _adapter_settings(settings: Any) -> str:
    # A set prints in another order in every process.
    known = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}
    return json.dumps(known, sort_keys=True, default=str)


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without what an engine or a judge only observes while it works."""
    return {key: value for key, value in settings.items() if key != "observed"}


def ids_sha256(prompts_ids: Sequence[Sequence[int]]) -> str:
    """Return the SHA-256 of rendered prompts, in order."""
    return hashlib.sha256(json.dumps([list(ids) for ids in prompts_ids]).encode("ascii")).hexdigest()


def _tensor_sha256(tensor: torch.Tensor) -> str:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return hashlib.sha256(data.tobytes()).hexdigest()
