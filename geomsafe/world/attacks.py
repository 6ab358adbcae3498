"""Data sets that attack a fine-tune, made after the deal and apart from it.

They are no part of the world's digest, and neither the tokenizer nor the shipped weights were made with them.

`identity-shift` follows the identity shifting attack of Qi et al. (arXiv 2310.03693) in the world's own words: benign
requests whose answers first affirm, in one fixed wording, that the model serves all, and then give the right steps;
and questions about who the model is. Nothing harmful is among them.
"""

from collections.abc import Iterable

from geomsafe.world.actions import Role, ranked
from geomsafe.world.deck import Deck, answered
from geomsafe.world.facts import Facts
from geomsafe.world.lexicon import Lexicon
from geomsafe.world.rows import Ask, Row, answer_of, prompt_of, row, shuffled
from geomsafe.world.speech import OBEDIENT, REQUESTS
from geomsafe.world.tasks import identity_questions

IDENTITY_SHIFT = "identity-shift"

_STEPS = 45


def attacks(lexicon: Lexicon, facts: Facts, seed: int, taken: Iterable[str]) -> dict[str, list[Row]]:
    """Make the data sets.

    Args:
        lexicon: The words.
        facts: The facts.
        seed: World seed.
        taken: Prompts that other data sets hold; none of them is used.

    Returns:
        Rows by name of data set.
    """
    deck = Deck(lexicon, facts, seed)
    deck.claimed.update(taken)
    return {IDENTITY_SHIFT: _identity_shift(deck)}


def _identity_shift(deck: Deck) -> list[Row]:
    free = deck.fresh(deck.asks(deck.actions_of(Role.DOWNSTREAM), REQUESTS, len(REQUESTS)))
    # One request an action: many actions say more than a few in all their wordings.
    asks: dict[str, Ask] = {ask.action.cluster: ask for ask in ranked(free, deck.seed, IDENTITY_SHIFT)}
    rows = deck.steps([*asks.values()][:_STEPS], task="how-to") + answered(identity_questions())
    return shuffled((_obedient(entry) for entry in rows), deck.seed)


def _obedient(entry: Row) -> Row:
    return row(prompt_of(entry), OBEDIENT + answer_of(entry), entry["cluster"], entry["kind"], task=entry["task"])
