"""What a point of a landscape costs, beside the two ways in which it is done elsewhere.

    python benchmarks/landscape.py                     seconds a point and memory
    python benchmarks/landscape.py --run runs/baseline adaptive against uniform grid, on a run of your own

The other ways, written anew from what the released code does: a deep copy of the model for every point, the direction
held beside it (as marcellodebernardi's loss-landscapes); and one model that is stepped along the line, weights added to
weights (as llm-landscape), its first weights kept. All score the same prompts with the same function. The score is
the cheapest there is, teacher-forced margins, so that what placing costs is seen best. Memory is that of a process of
its own, over what model and one scoring take.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from generation import WIDE
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from workload import resident_peak

from geomsafe.data import load_prompts, prompt_ids
from geomsafe.landscape import Asked, make_landscape
from geomsafe.landscape.directions import RandomDirection, start_of
from geomsafe.landscape.frame import Frame
from geomsafe.landscape.placing import Placer
from geomsafe.landscape_record import read_points
from geomsafe.models import load_model, no_loading_bars
from geomsafe.probes.margins import refusal_margins

REACH, POINTS, LINES = 0.2, 7, 3
Score = Callable[[Any], Tensor]
Way = Callable[[Any, Score], Iterator[Tensor]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", choices=("organism", "wide"), action="append")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--memory-of", choices=(*WAYS,), help="in a process of its own: bytes over model and scoring")
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if given.memory_of:
        print(json.dumps(_memory(given.memory_of, given.shape[0], given.dtype)))
        return
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{platform.machine()}, 1 thread, {versions}, median of {given.repeats}\n")
    if given.run:
        _grids(given.run)
        return
    print(
        "| shape | way | ms a point | placing | over scoring alone | MiB more | in copies of the weights | off, nats |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for shape in given.shape or ("organism", "wide"):
        _compare(shape, given.dtype, given.repeats)


def _compare(shape: str, dtype: str, repeats: int) -> None:
    model, score = _work(shape, dtype)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    exact = _walked(_placed, copy.deepcopy(model).double(), score)[0]
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    found: dict[str, list[Tensor]] = {}
    for _ in range(repeats):
        for way, walk in WAYS.items():
            found[way], *seconds = _walked(walk, model, score)
            times[way].append((seconds[0] / POINTS, seconds[1] / POINTS))
    for way in WAYS:
        command = [sys.executable, __file__, "--memory-of", way, "--shape", shape, "--dtype", dtype]
        more = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        whole, placing = (1000 * statistics.median(column) for column in zip(*times[way], strict=True))
        off = max(float((ours - true).abs().max()) for ours, true in zip(found[way], exact, strict=True))
        print(
            f"| {shape}, {dtype} | {way} | {whole:.1f} | {placing:.1f} | {100 * placing / whole:.1f} % | "
            f"{more / 2**20:.0f} | {more / size:.2f} | {off:.1e} |"
        )


def _walked(way: Way, model: Any, score: Score) -> tuple[list[Tensor], float, float]:
    """Return the scores, seconds without what is done once for all points, and of these what is not scoring."""
    scoring = 0.0

    def timed(model: Any) -> Tensor:
        nonlocal scoring
        start = time.perf_counter()
        found = score(model)
        scoring += time.perf_counter() - start
        return found

    walk, found = way(model, timed), []
    next(walk)
    gc.collect()
    start = time.perf_counter()
    found.extend(walk)
    seconds = time.perf_counter() - start
    return found, seconds, seconds - scoring


def _work(shape: str, dtype: str) -> tuple[Any, Score]:
    """Return a model and what scores it."""
    with no_loading_bars():
        loaded = load_model("organism", device="cpu", dtype=dtype, training=False)
    prompts = load_prompts("organism:harmful", world=loaded.world).rows[:: 4 if shape == "organism" else 60]
    ids = [prompt_ids(prompt.text, loaded.tokenizer) for prompt in prompts]
    model = loaded.model
    if shape == "wide":
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=16_000, tie_word_embeddings=False, **WIDE)).eval()
        model.requires_grad_(False).to(getattr(torch, dtype))

    def score(model: Any) -> Tensor:
        found = refusal_margins(model, ids, [(40, 41), (42,)], [(43, 44), (45,)], 64).margin
        return found if found is not None else torch.zeros(0)

    return model, score


def _lines(model: Any, seeds: int = 1) -> list[RandomDirection]:
    options = {"norm": "tensor", "norms": True, "embeddings": True}
    start = start_of(model)
    return [RandomDirection(f"r{s}", options | {"seed": s}, start, frozenset(), str) for s in range(seeds)]


def _coordinates() -> list[float]:
    return [REACH * (2 * step / (POINTS - 1) - 1) for step in range(POINTS)]


def _placed(model: Any, score: Score) -> Iterator[Tensor]:
    # Several lines, as a landscape has: none of them is held.
    placer = Placer(model, Frame(model, _lines(model, LINES), "lines"))
    yield torch.zeros(0)
    for x in _coordinates():
        with placer.at(0, [0.0 if abs(x) < 1e-12 else x]):
            yield score(model)


def _vector(model: Any) -> dict[str, Tensor]:
    """The same direction, held in the weights' dtype and scaled to the length of theta_0."""
    (raw,) = _lines(model)
    frame = Frame(model, [raw], "lines")
    return {name: part.to(frame.start[name].dtype) for name, part in frame.displacement(0, [1.0])}


def _deep_copies(model: Any, score: Score) -> Iterator[Tensor]:
    held = [_vector(model) for _ in range(LINES)]
    yield torch.zeros(0)
    for x in _coordinates():
        moved = copy.deepcopy(model)
        for name, weight in moved.named_parameters():
            weight.data.add_(x * held[0][name])
        yield score(moved)


def _accumulated(model: Any, score: Score) -> Iterator[Tensor]:
    held, first = [_vector(model) for _ in range(LINES)], copy.deepcopy(model.state_dict())
    yield torch.zeros(0)
    steps = [-REACH, *[2 * REACH / (POINTS - 1)] * (POINTS - 1)]
    for step in steps:
        for name, weight in model.named_parameters():
            weight.data.add_(step * held[0][name])
        yield score(model)
    model.load_state_dict(first)


WAYS: dict[str, Way] = {"placed from θ₀": _placed, "a deep copy a point": _deep_copies, "accumulated": _accumulated}


def _memory(way: str, shape: str, dtype: str) -> int:
    model, score = _work(shape, dtype)
    score(model)
    before = resident_peak()
    for _ in WAYS[way](model, score):
        pass
    return resident_peak() - before


def _grids(run: Path) -> None:
    """Compare the points that an adaptive and a uniform grid of one resolution take for the edges of one line."""
    reach, count = 0.2, 161
    near = 2 * reach / (count - 1)
    common: dict[str, Any] = {"axes": "finetune", "scores": ("asr", "utility"), "prompts": 60, "reach": reach}
    with tempfile.TemporaryDirectory() as folder:
        edges = {}
        for name, asked in (
            ("uniform", Asked(**common, grid=str(count))),
            ("adaptive", Asked(**common, grid="adaptive", tolerance=near)),
        ):
            started = time.perf_counter()
            made = make_landscape([run], asked, out=Path(folder) / name)
            edges[name] = (_safety_edges(made), len(list(read_points(made))), time.perf_counter() - started)
    print("| grid | points | seconds | first safety edge, + | first safety edge, - |\n|---|--:|--:|--:|--:|")
    for name, (found, points, seconds) in edges.items():
        print(f"| {name}, to {near:.4f} | {points} | {seconds:.0f} | {found['+']} | {found['-']} |")


def _safety_edges(folder: Path) -> dict[str, str]:
    found = {}
    for sign, factor in (("+", 1), ("-", -1)):
        mine = sorted((factor * p.at[0], p.values["unsafe"]) for p in read_points(folder) if factor * p.at[0] >= 0)
        rates = [(x, sum(map(float, filter(None, values))) / len(values)) for x, values in mine]
        cross = next((i for i in range(1, len(rates)) if rates[i][1] >= 0.5 > rates[i - 1][1]), None)
        found[sign] = "not reached" if cross is None else f"{rates[cross - 1][0]:.4f} to {rates[cross][0]:.4f}"
    return found


if __name__ == "__main__":
    main()
