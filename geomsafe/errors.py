"""The errors a user can cause, and nothing else.

Every message names the thing, the value it had, the cause where it is known and
the remedy, on one line: commands print it as it is and exit with `exit_code`.
A fault of geomsafe itself is an ordinary exception with its traceback.
"""


class GeomsafeError(Exception):
    """Base of all errors that the user's input, files or settings can cause."""

    exit_code = 2


class ConfigError(GeomsafeError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(GeomsafeError):
    """A data file is missing, broken, empty or has not the columns it needs."""


class ModelError(GeomsafeError):
    """A model, tokenizer or chat template is missing or cannot be used."""


class NonFiniteError(ModelError):
    """A model's logits are NaN or infinite: its weights have diverged, or their dtype is too narrow."""


class RecordError(GeomsafeError):
    """A run directory is missing, incomplete, of another version or not comparable."""


class CheckError(GeomsafeError):
    """`geomsafe check` has found what would make a run's numbers wrong."""

    exit_code = 1


class TrainingError(GeomsafeError):
    """A run stopped: the loss is not finite, or what resume needs is not there."""

    exit_code = 1


class ServerError(GeomsafeError):
    """A model server cannot be reached, refuses a request or answers what makes no sense."""

    exit_code = 1
