"""What scoring costs: ASR wall time against `model.generate`, alternately measured in one run.

    python benchmarks/generation.py --repeats 5

On the organism the other side is the loop of the released evaluation scripts: tokenise, `generate`, decode, look
for keywords; prompt by prompt, and in fixed batches of the best size. Verdicts on both sides are compared before
any time is. On a shape of 97 million random weights nothing ends early: there tokens per second are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from geomsafe.data import load_prompts, prompt_ids
from geomsafe.evaluation.decoding import complete, stop_token_ids
from geomsafe.evaluation.keywords import DEFAULT_KEYWORD_JUDGES, KEYWORD_JUDGES
from geomsafe.evaluation.stopping import early_stop
from geomsafe.models import Loaded, load_model

JUDGES = [KEYWORD_JUDGES[name] for name in DEFAULT_KEYWORD_JUDGES]
BATCHES = (8, 32, 64, 128, 256)
NEW_TOKENS = 128
WIDE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}


class Side(NamedTuple):
    """One way to answer: its name and what it does."""

    name: str
    answer: Callable[[], list[str]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("organism", "wide"))
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{platform.machine()}, {given.device}, 1 thread, {versions}, median of {given.repeats}\n")
    if given.only != "wide":
        _organism(given.repeats, given.device)
    if given.only != "organism":
        _wide(given.repeats, given.device)


def _organism(repeats: int, device: str) -> None:
    loaded = load_model("organism", device=device)
    for name in ("harmful", "look-alike"):
        prompts = load_prompts(f"organism:{name}", world=loaded.world)
        ids = [prompt_ids(prompt.text, loaded.tokenizer) for prompt in prompts.rows]
        ours = [
            Side("rows leave, settled rows too", lambda ids=ids: _complete(loaded, ids, settle=True)),
            Side("rows leave at their end", lambda ids=ids: _complete(loaded, ids, settle=False)),
        ]
        single = Side("generate, batch 1", lambda ids=ids: _generate(loaded, ids, 1))
        fixed = [
            Side(f"generate, batch {size}", lambda ids=ids, size=size: _generate(loaded, ids, size)) for size in BATCHES
        ]
        best = min(fixed, key=lambda side: _seconds(side.answer)[0])
        lengths = sorted(len(loaded.tokenizer(text)["input_ids"]) for text in fixed[-1].answer())
        print(
            f"organism:{name}, {len(ids)} prompts, answers of {lengths[0]} to {lengths[-1]} tokens, "
            f"median {lengths[len(lengths) // 2]}, limit {NEW_TOKENS}\n"
        )
        if name == "harmful":
            _compare(ours[:1], [single], repeats, verdicts=True)
        _compare(ours, [best], repeats, verdicts=True)


def _wide(repeats: int, device: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=8192, max_position_embeddings=1024, eos_token_id=None, bos_token_id=None, **WIDE)
    model = LlamaForCausalLM(config).eval().to(device)
    count = sum(parameter.numel() for parameter in model.parameters())
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 48, (32,), generator=generator).tolist()
    ids = [torch.randint(5, 8192, (length,), generator=generator).tolist() for length in lengths]
    loaded = _Bare(model)
    fixed = [
        Side(f"generate, batch {size}", lambda size=size: _generate(loaded, ids, size, 32)) for size in (8, 16, 32)
    ]
    best = min(fixed, key=lambda side: _seconds(side.answer)[0])
    print(f"{count / 1e6:.0f} M random weights, {len(ids)} prompts of 8 to 47 tokens, 32 new tokens each\n")
    _compare(
        [Side("rows leave at their end", lambda: _complete(loaded, ids, False, 32))], [best], repeats, verdicts=False
    )


class _Bare:
    """A model without a tokenizer; texts are its ids."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokenizer = self
        self.eos_token_id = None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


def _compare(ours: list[Side], theirs: list[Side], repeats: int, verdicts: bool) -> None:
    print(
        "| ours | seconds | against | seconds | times as fast | range | same verdicts |\n|---|--:|---|--:|--:|--:|---|"
    )
    for side in ours:
        for other in theirs:
            pairs = []
            for _ in range(repeats):
                mine, texts = _seconds(side.answer)
                slow, expected = _seconds(other.answer)
                pairs.append((slow / mine, mine, slow))
            same = _verdicts(texts) == _verdicts(expected) if verdicts else texts == expected
            ratios = sorted(ratio for ratio, _, _ in pairs)
            seconds = [statistics.median(column) for column in zip(*pairs, strict=True)]
            spread = f"{seconds[0]:.2f} | {ratios[0]:.2f} – {ratios[-1]:.2f}"
            said = ("yes" if same else "NO") if verdicts else ("same tokens" if same else "near ties differ")
            print(f"| {side.name} | {seconds[1]:.2f} | {other.name} | {seconds[2]:.2f} | {spread} | {said} |")
    print()


def _verdicts(texts: Sequence[str]) -> list[list[str]]:
    return [[judge.judge(text).value for judge in JUDGES] for text in texts]


def _seconds(answer: Callable[[], list[str]]) -> tuple[float, list[str]]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    texts = answer()
    return time.perf_counter() - start, texts


def _complete(loaded: Loaded | _Bare, ids: list[list[int]], settle: bool, new_tokens: int = NEW_TOKENS) -> list[str]:
    texts: dict[int, str] = {}
    settled = early_stop(loaded.tokenizer, JUDGES) if settle else None
    complete(
        loaded.model,
        loaded.tokenizer,
        ids,
        new_tokens,
        256,
        lambda place, completion: texts.__setitem__(place, completion.text),
        settled=settled,
        stop_ids=frozenset() if isinstance(loaded, _Bare) else None,
    )
    return [texts[place] for place in range(len(ids))]


def _generate(loaded: Loaded | _Bare, ids: list[list[int]], size: int, new_tokens: int = NEW_TOKENS) -> list[str]:
    """Answer in fixed batches, in the order of the file, as the released scripts do."""
    stops = frozenset() if isinstance(loaded, _Bare) else stop_token_ids(loaded.model, loaded.tokenizer)
    texts: list[str] = []
    with torch.no_grad():
        for start in range(0, len(ids), size):
            batch = ids[start : start + size]
            longest = max(map(len, batch))
            tokens = torch.tensor([[0] * (longest - len(row)) + row for row in batch], device=loaded.model.device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=tokens.device)
            out = loaded.model.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new_tokens,
                eos_token_id=sorted(stops) or None,
                pad_token_id=min(stops, default=0),
            )
            texts += [loaded.tokenizer.decode(row, skip_special_tokens=True) for row in out[:, longest:].tolist()]
    return texts


if __name__ == "__main__":
    main()
