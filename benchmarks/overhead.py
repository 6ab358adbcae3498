"""What measuring costs: ratios of wall time, each pair measured alternately in one run.

    python benchmarks/overhead.py --repeats 5

Prints the table of benchmarks/RESULTS.md. A ratio is the median over repeats of
(time with) / (time without) in the same repeat, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

from geomsafe.config import make_config
from geomsafe.data import Encoded, collate, encode_all, load_conversations, load_prompts, prompt_ids
from geomsafe.evaluation import generate_greedy
from geomsafe.gradients import gradient_gram, token_losses
from geomsafe.methods import MethodsCallback, make_methods
from geomsafe.models import Anchor, Loaded, load_model
from geomsafe.training.engine import make_engine

STEPS = 20
EXAMPLES = 32
NEW_TOKENS = 64

Work = Callable[[], object]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{platform.machine()}, 1 thread, {versions}\n")
    print("| measured | against | ratio | range |\n|---|---|--:|--:|")
    for measured, against, work, plain in _pairs():
        ratios = sorted(_timed(work) / _timed(plain) for _ in range(repeats))
        print(f"| {measured} | {against} | {statistics.median(ratios):.2f} | {ratios[0]:.2f} – {ratios[-1]:.2f} |")


def _pairs() -> list[tuple[str, str, Work, Work]]:
    loaded = load_model("organism")
    trainer, backward = "plain Trainer, same steps", f"one batched backward of {EXAMPLES} examples"
    return [
        ("baseline: callback, clipping, distance", trainer, _training(()), _training(None)),
        ("shadow EMA every step", trainer, _training(("ema",)), _training(None)),
        ("EMA fed back every step", trainer, _training(("ema:mode=feedback",)), _training(None)),
        ("Gram of single examples", backward, _gram(loaded), _backward(loaded)),
        ("greedy answers, finished rows leave", "generate, same batches", _greedy(loaded), _generate(loaded)),
    ]


def _timed(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _training(methods: Sequence[str] | None) -> Work:
    """Return some steps of training; None: Trainer with its own clipping and no callback."""
    loaded = load_model("organism")
    rows = _examples(loaded, 16 * STEPS)
    start = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}

    def run() -> None:
        loaded.model.load_state_dict(start)
        callbacks = [] if methods is None else [MethodsCallback(make_methods(methods), anchor=Anchor(loaded.model))]
        with TemporaryDirectory() as folder:
            config = make_config({"max_steps": STEPS})
            pad = loaded.tokenizer.pad_token_id
            make_engine(
                config, loaded.model, rows, lambda batch: collate(batch, pad), Path(folder), loaded.device, callbacks
            ).train()

    return run


def _examples(loaded: Loaded, count: int) -> list[Encoded]:
    conversations = load_conversations("organism:downstream-neutral", world=loaded.world, limit=count)
    return encode_all(conversations, loaded.tokenizer, 512).rows


def _batch(loaded: Loaded) -> dict[str, torch.Tensor]:
    return collate(_examples(loaded, EXAMPLES), 0)


def _gram(loaded: Loaded) -> Work:
    batch = _batch(loaded)
    return lambda: [gradient_gram(loaded.model, batch) for _ in range(5)]


def _backward(loaded: Loaded) -> Work:
    batch = _batch(loaded)

    def run() -> None:
        for _ in range(5):
            token_losses(loaded.model, batch).losses.sum().backward()
            loaded.model.zero_grad()

    return run


def _prompts(loaded: Loaded) -> list[list[int]]:
    prompts = load_prompts("organism:look-alike", world=loaded.world, limit=128).rows
    return sorted((prompt_ids(prompt.text, loaded.tokenizer) for prompt in prompts), key=len, reverse=True)


def _greedy(loaded: Loaded) -> Work:
    ids = _prompts(loaded)
    return lambda: generate_greedy(loaded.model, loaded.tokenizer, ids, NEW_TOKENS, 64)


def _generate(loaded: Loaded) -> Work:
    ids, pad = _prompts(loaded), loaded.tokenizer.pad_token_id

    def run() -> None:
        for batch in (ids[:64], ids[64:]):
            longest = len(batch[0])
            tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
            loaded.model.generate(input_ids=tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS)

    return run


if __name__ == "__main__":
    main()
