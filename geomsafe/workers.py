"""Who does work that falls into independent jobs: processes of this machine, or a Ray cluster.

Both are joblib's: inside `parallel_backend` a `joblib.Parallel` sends its jobs there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from joblib import parallel_config

from geomsafe.errors import ConfigError

Backend = Literal["loky", "ray"]


@contextmanager
def parallel_backend(backend: Backend, address: str | None, workers: int) -> Iterator[None]:
    """Let joblib's jobs run on a backend for the length of a block.

    Args:
        backend: "loky", processes of this machine, or "ray".
        address: of the Ray cluster; None starts one on this machine and stops it afterwards.
        workers: jobs at a time.

    Yields:
        Nothing.

    Raises:
        ConfigError: Ray is asked for and not installed.
    """  # noqa: DOC502
    if backend == "loky":
        with parallel_config(backend="loky"):
            yield
        return
    with _ray(address, workers), parallel_config(backend="ray"):
        yield


@contextmanager
def _ray(address: str | None, workers: int) -> Iterator[None]:
    """Register Ray with joblib, and connect to a cluster, or start one here and stop it afterwards."""  # noqa: DOC402, DOC501
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise ConfigError("--backend ray needs Ray: pip install geomsafe[ray]") from None
    register_ray()  # type: ignore[no-untyped-call]
    ours = not ray.is_initialized()
    if ours:
        ray.init(
            address=address,
            num_cpus=None if address else workers,
            log_to_driver=False,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        if ours:
            ray.shutdown()
