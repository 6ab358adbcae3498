"""Methods: what acts on gradients or weights while a model is trained, one file each."""

from geomsafe.methods.alignment import base_weights
from geomsafe.methods.asft import Asft, AsftOptions
from geomsafe.methods.base import AnchorWanted, Method, Schedule
from geomsafe.methods.callback import MethodsCallback
from geomsafe.methods.clip import Clip, ClipOptions
from geomsafe.methods.finite import NotFiniteError
from geomsafe.methods.loss import GeomsafeLoss, LossMethod, Term
from geomsafe.methods.one_shot import OneShot, OneShotOptions
from geomsafe.methods.origin import Origin
from geomsafe.methods.pcgrad import PcGrad, PcGradOptions
from geomsafe.methods.registry import REGISTRY, make_method, make_methods
from geomsafe.methods.safe_lora import SafeLora, SafeLoraOptions
from geomsafe.methods.safegrad import SafeGrad, SafeGradOptions
from geomsafe.methods.spf import Spf, SpfOptions

__all__ = [
    "REGISTRY",
    "AnchorWanted",
    "Asft",
    "AsftOptions",
    "Clip",
    "ClipOptions",
    "GeomsafeLoss",
    "LossMethod",
    "Method",
    "MethodsCallback",
    "NotFiniteError",
    "OneShot",
    "OneShotOptions",
    "Origin",
    "PcGrad",
    "PcGradOptions",
    "SafeGrad",
    "SafeGradOptions",
    "Spf",
    "SpfOptions",
    "SafeLora",
    "SafeLoraOptions",
    "Schedule",
    "Term",
    "base_weights",
    "make_method",
    "make_methods",
]
