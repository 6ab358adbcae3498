"""Safety-basin landscapes: scores of a model at theta_0 + a d_1 + b d_2, from directions to a record on disk."""

from geomsafe.landscape.landscape import Asked, make_landscape

__all__ = ["Asked", "make_landscape"]
