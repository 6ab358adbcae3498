"""theta_base for the methods that need it: the model as it was before alignment."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from geomsafe.config import TrainConfig
from geomsafe.errors import ConfigError
from geomsafe.methods import Method, base_weights
from geomsafe.methods.alignment import require_partners
from geomsafe.models import Loaded, load_model

_BASE = "theta_base"


def base_name(config: TrainConfig, loaded: Loaded) -> str | None:
    """Return the model that theta_0 was aligned from.

    Args:
        config: the settings; `base_model` names it.
        loaded: theta_0; an organism has its own beside it.

    Returns:
        Folder or hub name; None where it is not known.
    """
    beside = loaded.folder.parent / _BASE if loaded.folder is not None and loaded.world is not None else None
    return config.base_model or (str(beside) if beside is not None and beside.is_dir() else None)


def load_base(config: TrainConfig, methods: Sequence[Method], loaded: Loaded) -> dict[str, Tensor] | None:
    """Load theta_base where a method of the run needs it.

    Args:
        config: the settings; `base_model` names it. An organism has its own beside it.
        methods: the methods of the run.
        loaded: the model at theta_0.

    Returns:
        Base name -> tensor on the CPU; None where no method needs it.

    Raises:
        ConfigError: a method needs it and it is not known.
        ModelError: it cannot be loaded, or a weight has no partner in it.
    """  # noqa: DOC502
    needing = [method for method in methods if method.needs_base]
    if not needing:
        return None
    name = base_name(config, loaded)
    if name is None:
        raise ConfigError(f"method {needing[0].label} needs theta_base, the model before alignment: give --base-model")
    base = load_model(
        name,
        dtype=config.dtype,
        device="cpu",
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
        training=False,
    )
    weights = base_weights(base.model)
    for method in needing:
        require_partners(method.label, loaded.model, weights)
    return weights
