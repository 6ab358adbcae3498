"""Methods: what acts on gradients or weights while a model is trained, one file each."""

from geomsafe.methods.base import Method, Schedule
from geomsafe.methods.callback import MethodsCallback
from geomsafe.methods.finite import NotFiniteError
from geomsafe.methods.origin import Origin
from geomsafe.methods.registry import REGISTRY, make_method, make_methods

__all__ = [
    "REGISTRY",
    "Method",
    "MethodsCallback",
    "NotFiniteError",
    "Origin",
    "Schedule",
    "make_method",
    "make_methods",
]
