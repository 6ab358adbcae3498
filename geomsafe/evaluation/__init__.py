"""Generation and judging: what a model answers, and what several judges make of it."""

from geomsafe.evaluation.decoding import Completion, generate_greedy
from geomsafe.evaluation.rescoring import rescore
from geomsafe.evaluation.score import evaluate_model
from geomsafe.evaluation.standalone import default_out, evaluate, load_scored
from geomsafe.evaluation.suites import Suite, suites_for

__all__ = [
    "Completion",
    "Suite",
    "default_out",
    "evaluate",
    "evaluate_model",
    "generate_greedy",
    "load_scored",
    "rescore",
    "suites_for",
]
