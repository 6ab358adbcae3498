"""The residual stream at the end of prompts, layer by layer.

Prompts of equal length share a batch, so that none is padded. Nothing is generated and no head is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from geomsafe.data import Prompt, prompt_ids, render_prompt, token_ids
from geomsafe.gradients.undisturbed import undisturbed
from geomsafe.models.blocks import backbone, decoder_blocks
from geomsafe.probes.margins import equal_lengths

_TEXTS = ("Name a colour.", "Which day is it today?")


def post_instruction_tokens(tokenizer: Any, system: str | None = None) -> list[int]:
    """Return the tokens that the chat template writes behind the user's text, whatever that text is.

    Args:
        tokenizer: a tokenizer with a chat template.
        system: the system turn, if any.

    Returns:
        Token ids, at least one: where the template writes nothing of its own there, the last token of the prompt takes
        its place.
    """
    tails = []
    for text in _TEXTS:
        written = render_prompt(text, tokenizer, system)
        tails.append(token_ids(written[written.rindex(text) + len(text) :], tokenizer))
    whole = [prompt_ids(text, tokenizer, system) for text in _TEXTS]
    # A tokenizer may merge the text's end with what follows: such a token depends on the text.
    while tails[0] and any(ids[-len(tails[0]) :] != tails[0] for ids in whole):
        tails[0] = tails[0][1:]
    return tails[0] or whole[0][-1:]


def prompts_in_tokens(prompts: Sequence[Prompt], tokenizer: Any, system: str | None) -> list[list[int]]:
    """Return the token ids of prompts, generation prompt included."""
    return [prompt_ids(prompt.text, tokenizer, prompt.system or system) for prompt in prompts]


def residuals(
    model: Any, prompts: Sequence[Sequence[int]], positions: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the residual stream at the last positions of prompts.

    Args:
        model: a causal LM, left exactly as found.
        prompts: token ids, not padded, each with `positions` tokens at least.
        positions: how many of the last tokens are read.
        batch_size: prompts read together, at most.

    Yields:
        Rows of `prompts`, and (rows, layers + 1, positions, width) float64: the stream before each block, and behind
        the last one, before the final norm.
    """
    device = next(model.parameters()).device
    blocks = decoder_blocks(model)
    with undisturbed(model), torch.no_grad():
        for rows in equal_lengths(prompts, batch_size):
            ids = torch.tensor([list(prompts[row]) for row in rows], device=device)
            with _Streams(blocks, positions) as streams:
                backbone(model)(input_ids=ids, use_cache=False)
            yield rows, torch.stack(streams.found, dim=1)


class _Streams:
    """Hooks that copy the end of the stream while a forward pass runs."""

    def __init__(self, blocks: Sequence[nn.Module], positions: int) -> None:
        self.found: list[Tensor] = []
        self._blocks = blocks
        self._positions = positions
        self._hooks = ExitStack()

    def __enter__(self) -> _Streams:
        for block in self._blocks:
            handle = block.register_forward_pre_hook(self._before, with_kwargs=True)
            self._hooks.callback(handle.remove)
        self._hooks.callback(self._blocks[-1].register_forward_hook(self._behind).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(args[0] if args else kwargs["hidden_states"])

    def _behind(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self._keep(output if isinstance(output, Tensor) else output[0])

    def _keep(self, stream: Tensor) -> None:
        kept = stream[:, -self._positions :].detach()
        # Apple's GPUs have no float64.
        self.found.append((kept.cpu() if kept.device.type == "mps" else kept).double())
