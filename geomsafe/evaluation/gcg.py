"""GCG: a suffix optimised until the model wants to give a harmful answer (Zou et al., arXiv 2307.15043, section 2).

The search is that of the `nanogcg` package: at each step the gradient of the target's loss on the one-hot tokens of
the suffix proposes `topk` tokens a place, `width` suffixes that differ in one token are tried, the best is kept.
One suffix a prompt, target = the answer that an attacker wants (`attacks.wanted_answer`).

What stands between the package and the model here:

- The package sees the prompt as `geomsafe.data.render` writes it, with the prompt's system turn and begin-of-text token
  exactly once, and no token that the tokenizer calls special may be part of a suffix.
- Its prefix cache is off: it indexes transformers' cache object, which transformers 5 does not allow.
- It puts the tokens of prompt, suffix and rest side by side; read as one text they can be others. So every suffix on
  the way, the starting one included, is read once more as scoring reads it, and the one of lowest loss is used.
- It seeds torch, NumPy and `random` and asks torch for deterministic algorithms; all of that is put back.

Cost of a prompt: `steps` x (`width` + 1) readings of prompt, suffix and target.
"""

from __future__ import annotations

import contextlib
import gc
import io
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geomsafe.config import MethodSpec
from geomsafe.data import Conversation, Prompt, encode, render
from geomsafe.errors import ConfigError, DataError
from geomsafe.evaluation.attacks import Attempt, needed, short, wanted_answer
from geomsafe.evaluation.teacher import answer_losses
from geomsafe.gradients.undisturbed import undisturbed

if TYPE_CHECKING:
    from geomsafe.models import Loaded

START = " ".join(["x"] * 20)
"""The suffix that the search begins with: that of nanogcg."""

_SLOT = "{optim_str}"  # where nanogcg puts the suffix
_FORBIDDEN = "\x00"  # what nanogcg takes for a token that no suffix may have

OPTIONS = ("steps", "width", "topk", "batch", "seed")
"""What may be written behind "gcg:"."""

Progress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all)."""


@dataclass(frozen=True)
class Gcg:
    """An optimised suffix behind every prompt.

    Attributes:
        steps: of the search; nanogcg's default, half of Zou et al.'s 500.
        width: suffixes that are tried at a step (B of Zou et al.).
        topk: tokens a place that the gradient may propose (k of Zou et al.).
        batch: suffixes that run together; 0 for all, and fewer where memory is short.
        seed: of the draws, the same for every prompt.
        system_prompt: system turn of prompts that have none: that of the evaluation.
        progress: called after every prompt.
    """

    steps: int = 250
    width: int = 512
    topk: int = 256
    batch: int = 0
    seed: int = 0
    system_prompt: str | None = None
    progress: Progress | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """As it is written, with the options that differ from the defaults: "gcg", "gcg:steps=500"."""
        values, usual = self._options(), Gcg()._options()
        changed = ",".join(f"{key}={value}" for key, value in values.items() if value != usual[key])
        return f"gcg:{changed}" if changed else "gcg"

    def attempts(self, prompts: Sequence[Prompt], loaded: Loaded | None) -> list[Attempt]:
        """Return the prompts with a suffix each; the model is left as it was found.

        Raises:
            ConfigError: there is no model, nanogcg is not installed, or the vocabulary is too small for `topk`.
            DataError: nothing says what answer is wanted, or a prompt holds nanogcg's own mark.
        """  # noqa: DOC502
        attacked = needed(loaded, self.name)
        _nanogcg()
        targets = [wanted_answer(prompt, attacked.world, self.name) for prompt in prompts]
        reader = _Reader(attacked.tokenizer, attacked.model)
        if reader.offered < self.topk:
            raise ConfigError(f"attack '{self.name}': topk {self.topk} of {reader.offered} tokens: ask for fewer")
        found: list[Attempt] = []
        with undisturbed(attacked.model), _left_alone(attacked.model):
            for prompt, target in zip(prompts, targets, strict=True):
                suffixes = [START, *self._search(prompt, target, attacked.model, reader)]
                found.append(Attempt(self._best(prompt, target, suffixes, attacked)))
                if self.progress is not None:
                    self.progress(len(found), len(prompts))
        return found

    def settings(self) -> dict[str, Any]:
        """Return the search's settings and the package's version."""
        from importlib.metadata import version

        _nanogcg()
        return {**self._options(), "start": START, "nanogcg": version("nanogcg")}

    def _options(self) -> dict[str, int]:
        return {key: getattr(self, key) for key in OPTIONS}

    def _search(self, prompt: Prompt, target: str, model: Any, reader: _Reader) -> list[str]:
        """Return the best suffix of every step."""  # noqa: DOC201, DOC501
        package = _nanogcg()
        if _SLOT in prompt.text:
            raise DataError(f"attack '{self.name}': prompt '{short(prompt)}' has '{_SLOT}' in it, nanogcg's own mark")
        config = package.GCGConfig(
            num_steps=self.steps,
            optim_str_init=START,
            search_width=self.width,
            batch_size=self.batch or None,
            topk=self.topk,
            seed=self.seed,
            use_prefix_cache=False,
            verbosity="ERROR",
        )
        turns = self._turns(prompt, with_suffix(prompt, _SLOT))
        # A bar a prompt on the terminal, whoever calls: `progress` is for that.
        with contextlib.redirect_stderr(io.StringIO()):
            result = package.run(model, reader, turns, target, config)
        return list(dict.fromkeys(result.strings))

    def _best(self, prompt: Prompt, target: str, suffixes: Sequence[str], loaded: Loaded) -> str:
        """Return the prompt with the suffix under which the target is likeliest, read as scoring reads it."""
        texts = [with_suffix(prompt, suffix) for suffix in suffixes]
        answer = {"role": "assistant", "content": target}
        rows = [
            encode(Conversation([*self._turns(prompt, text), answer], "", row=0), loaded.tokenizer, sys.maxsize)
            for text in texts
        ]
        losses = answer_losses(loaded.model, rows, batch_size=16)
        return texts[int((losses[:, 0] / losses[:, 1]).argmin())]

    def _turns(self, prompt: Prompt, text: str) -> list[dict[str, str]]:
        system = prompt.system or self.system_prompt
        turns = [{"role": "system", "content": system}] if system else []
        return [*turns, {"role": "user", "content": text}]


def parse_gcg(text: str) -> Gcg:
    """Read "gcg" or "gcg:steps=250,width=512".

    Args:
        text: as it is written in a suite file.

    Returns:
        The attack.

    Raises:
        ConfigError: an option is unknown or no number that makes sense.
    """
    options: dict[str, Any] = dict(MethodSpec.parse(text).options)
    for key, value in options.items():
        if key not in OPTIONS:
            raise ConfigError(f"attack '{text}': option '{key}' is unknown, choose from {', '.join(OPTIONS)}")
        if type(value) is not int or value < (0 if key in {"batch", "seed"} else 1):
            raise ConfigError(f"attack '{text}': {key} must be a whole number, not {value}")
    return Gcg(**options)


def with_suffix(prompt: Prompt, suffix: str) -> str:
    """Return a prompt with a suffix behind it, as Zou et al. put it: one space between."""
    return f"{prompt.text} {suffix}"


class _Reader:
    """A tokenizer as nanogcg may use it: it renders our way, adds nothing, and offers no special token."""

    bos_token = None  # the rendered text has it already
    chat_template = "geomsafe.data.render"  # only asked whether there is one

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = model.get_input_embeddings().num_embeddings
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        known = [index for index in range(min(self.vocab_size, len(tokenizer))) if index not in special]
        self._texts = {index: str(tokenizer.decode([index])) for index in known}
        self.offered = sum(text.isascii() and text.isprintable() for text in self._texts.values())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        return self._tokenizer(text, **(options | {"add_special_tokens": False}))

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return render(messages, self._tokenizer, generation_prompt=True)

    def decode(self, ids: list[int]) -> str:
        """Return the text of one token that a suffix might get."""
        return self._texts.get(ids[0], _FORBIDDEN)


@contextlib.contextmanager
def _left_alone(model: Any) -> Iterator[None]:
    """Keep gradients off the weights, and put back flags and random states that the search changes."""
    wanted = [(weight, weight.requires_grad) for weight in model.parameters()]
    numbers, draws = np.random.get_state(), random.getstate()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    # nanogcg collects garbage several times a step, which goes through all objects that are not frozen: half a second.
    gc.freeze()
    try:
        for weight, _ in wanted:
            weight.requires_grad_(False)
        yield
    finally:
        gc.unfreeze()
        for weight, flag in wanted:
            weight.requires_grad_(flag)
        np.random.set_state(numbers)
        random.setstate(draws)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)


def _nanogcg() -> Any:
    try:
        import nanogcg
    except ImportError:
        raise ConfigError("attack 'gcg' needs the package nanogcg: pip install 'geomsafe[gcg]'") from None
    return nanogcg
