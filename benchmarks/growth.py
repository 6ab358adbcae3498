"""How time and memory grow with examples, tokens and width, as a table and a drawing.

    python benchmarks/growth.py --out benchmarks/growth.svg

One process a point and way: the median processor time (one thread by default) of three passes
after one unmeasured, and the highest resident memory less what was held before the model was made.
Around one point (see `HERE`) one quantity varies at a time. The exponent is the slope of log
time on log quantity over the upper half of the range: 1 is linear, 2 quadratic.
Theory, P parameters, N examples of T tokens: the plain pass takes 6 N T P operations, attention apart. The sketch
grows with N T alone, its own part like sqrt(P). The exact Gram matrix adds N^2 P to N T P: linear in examples
while N is below T, quadratic far above; linear in tokens; quadratic in width like the pass itself.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from contenders import Work, ours_gram, ours_sketch, plain
from drawing import draw
from workload import Shape, random_batch, random_llama, resident_peak

WAYS = {"plain pass": plain, "exact Gram": ours_gram, "sketch": ours_sketch}
HERE = {"examples": 32, "tokens": 48, "width": 256}
RANGES = {
    "examples": (8, 16, 32, 64, 128, 256),
    "tokens": (32, 64, 128, 256, 512),
    "width": (128, 256, 512, 1024),
}
Point = dict[str, float]


def main() -> None:
    """Measure every point, print the table, write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("growth.svg"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.point:
        print(json.dumps(_measure(**json.loads(options.point))))
        return
    found = {quantity: _series(quantity, options.threads) for quantity in RANGES}
    options.out.write_text(draw(found, title="Cost of per-example gradient geometry"), encoding="utf-8")


def _series(quantity: str, threads: int) -> dict[str, dict[int, Point]]:
    """Measure one range for every way, and print its table."""
    rest = ", ".join(f"{value} {name}" for name, value in HERE.items() if name != quantity)
    print(f"\nAgainst {quantity} ({rest}, 4 layers, a third of the tokens are targets)\n")
    print(f"| {quantity} | " + " | ".join(f"{way}, s | MiB" for way in WAYS) + " |\n|--:|" + "--:|" * 2 * len(WAYS))
    series: dict[str, dict[int, Point]] = {way: {} for way in WAYS}
    for value in RANGES[quantity]:
        cells = []
        for way in WAYS:
            point = json.dumps(HERE | {quantity: value, "way": way})
            command = [sys.executable, __file__, "--point", point, "--threads", str(threads)]
            series[way][value] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            cells.append(f"{series[way][value]['seconds']:.3f} | {series[way][value]['bytes'] / 2**20:.0f}")
        print(f"| {value} | " + " | ".join(cells) + " |", flush=True)
    slopes = [f"{_exponent(points, 'seconds'):.2f} | {_exponent(points, 'bytes'):.2f}" for points in series.values()]
    print("| exponent | " + " | ".join(slopes) + " |", flush=True)
    return series


def _exponent(points: dict[int, Point], key: str) -> float:
    """Slope of log y on log x from the middle of the range to its end."""
    xs = sorted(points)
    first, last = xs[len(xs) // 2 - 1], xs[-1]
    return math.log(points[last][key] / points[first][key]) / math.log(last / first)


def _measure(way: str, examples: int, tokens: int, width: int) -> Point:
    before = resident_peak()
    shape = Shape(width, 8 * width // 3 // 64 * 64, 4, width // 64, width // 64, 4096)
    work: Work = WAYS[way](random_llama(shape), random_batch(shape.vocabulary, examples, tokens, tokens // 3))
    work()
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return {"seconds": statistics.median(times), "bytes": resident_peak() - before}


if __name__ == "__main__":
    main()
