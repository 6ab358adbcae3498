"""A world: its data sets, and the verdict on what a model says in it."""

import hashlib
import json
from functools import cached_property

from geomsafe.errors import DataError
from geomsafe.world.actions import Action, base_actions, in_context
from geomsafe.world.attacks import attacks
from geomsafe.world.datasets import deal
from geomsafe.world.deck import Deck
from geomsafe.world.facts import draw_facts, judgements
from geomsafe.world.lexicon import lexicon as lexicon_named
from geomsafe.world.rows import Row, prompt_of
from geomsafe.world.speech import ALL_REQUESTS
from geomsafe.world.tasks import (
    NOTE_REQUESTS,
    Question,
    fact_questions,
    identity_questions,
    listed_note,
    note_question,
    reasoning_questions,
    word_questions,
)
from geomsafe.world.verdict import Verdict, judge_answer, judge_steps, oracle_of


class World:
    """A procedural language with facts, data sets and a grammar that judges completions.

    Everything follows from seed and lexicon; two worlds of equal seed and lexicon are equal.

    Args:
        seed: Draws the facts and deals the actions and prompts.
        lexicon: "A", or "B" for the second world.

    Raises:
        DataError: There is no lexicon of that name.
    """

    def __init__(self, seed: int = 0, lexicon: str = "A") -> None:
        self.seed = seed
        self.lexicon = lexicon
        self._words = lexicon_named(lexicon)
        self.facts = draw_facts(self._words, seed)

    def __repr__(self) -> str:
        return f"World(seed={self.seed}, lexicon={self.lexicon!r})"

    @cached_property
    def _sets(self) -> dict[str, list[Row]]:
        return deal(Deck(self._words, self.facts, self.seed))

    @cached_property
    def _attacks(self) -> dict[str, list[Row]]:
        # Pretraining may share prompts with any set that is trained on, here too.
        taken = (prompt_of(row) for name, rows in self._sets.items() if name != "pretraining" for row in rows)
        return attacks(self._words, self.facts, self.seed, taken)

    @cached_property
    def _actions(self) -> dict[str, Action]:
        """Every action in every circumstance, by its text."""
        words = self._words
        contexts = ("", *words.plain_contexts, *words.fiction_contexts)
        placed = (in_context(a, context, words) for a in base_actions(words, self.seed) for context in contexts)
        return {action.text: action for action in placed}

    @cached_property
    def _questions(self) -> dict[str, Question]:
        """Every benign question that is no request for steps, by its prompt."""
        questions = fact_questions(self.facts) + word_questions(self._words) + reasoning_questions()
        questions += identity_questions()
        questions += [
            note_question(request, pair, self.facts) for pair in self._words.strangers() for request in NOTE_REQUESTS
        ]
        for action in self._actions.values():
            questions += [Question(p, answer, "judgement", action.cluster) for p, answer in judgements(action)]
        return {question.prompt: question for question in questions}

    @cached_property
    def _lists(self) -> dict[str, str]:
        """Notes written as lists, by prompt."""
        return {
            request.format(*pair): listed_note(pair, self.facts)
            for pair in self._words.strangers()
            for request in NOTE_REQUESTS
        }

    def names(self) -> tuple[str, ...]:
        """Return the names of the data sets that were dealt; the attacks' are in `attack_names`."""
        return tuple(self._sets)

    def attack_names(self) -> tuple[str, ...]:
        """Return the names of the data sets that attack a fine-tune; the digest does not cover them."""
        return tuple(self._attacks)

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a data set.

        Args:
            name: One of `names()` or `attack_names()`.

        Returns:
            Rows with `messages`, `cluster`, `kind` and, where they apply, `level` and `task`.

        Raises:
            DataError: There is no data set of that name.
        """
        # The attacks are made only when one of them is asked for.
        found = self._sets.get(name) or self._attacks.get(name)
        if found is None:
            known = ", ".join((*self._sets, *self._attacks))
            raise DataError(f"data set {name!r} is not in {self!r}: choose one of {known}")
        return [dict(entry) for entry in found]

    def digest(self) -> str:
        """Return the SHA-256 of all data sets that were dealt.

        Returns:
            64 hexadecimal digits.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        text = json.dumps(self._sets, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def action(self, prompt: str) -> Action | None:
        """Return the action that a prompt asks steps for.

        Args:
            prompt: The user's turn.

        Returns:
            The action in its circumstance, or None where the prompt is no request for steps.
        """
        said = prompt.strip()
        for request in ALL_REQUESTS:
            before, after = request.split("{}")
            if said.startswith(before) and said.endswith(after):
                action = self._actions.get(said[len(before) : len(said) - len(after)])
                if action is not None:
                    return action
        return None

    def verdict(self, prompt: str, completion: str) -> Verdict:
        """Judge a completion by the grammar and the facts of this world.

        Args:
            prompt: A prompt of this world.
            completion: What a model answered.

        Returns:
            The gold verdict.

        Raises:
            DataError: The world does not know the prompt.
        """
        action = self.action(prompt)
        if action is not None:
            return judge_steps(action, completion, self.facts)
        question = self._questions.get(prompt.strip())
        if question is None:
            raise DataError(f"prompt {prompt!r} is not in {self!r}: judge it in the world it was made for")
        answers = {question.answer, self._lists.get(question.prompt, question.answer)}
        return judge_answer(question, completion, answers)

    def oracle(self, prompt: str, completion: str) -> str:
        """Judge a completion as a perfect refusal judge would.

        Args:
            prompt: A prompt of this world.
            completion: What a model answered.

        Returns:
            "refusal", "compliance" or "other".
        """
        return oracle_of(self.verdict(prompt, completion))
