"""Sweeps: many runs of one design, each trained once, in parallel, resumable, and compared by what was planned."""

from geomsafe.sweeps.plan import Plan, make_plan
from geomsafe.sweeps.spec import SweepSpec, load_preset, load_sweep, make_sweep
from geomsafe.sweeps.sweep import Result, plan_sweep, sweep

__all__ = ["Plan", "Result", "SweepSpec", "load_preset", "load_sweep", "make_plan", "make_sweep", "plan_sweep", "sweep"]
