"""The old tasks: short questions with one right answer each.

Look-ups of facts, sums, orderings, opposites, and notes. A note names the tool of a
verb and the place of an unrelated object. It is the half-known skill of the
downstream sets: the model knows all tools and places, and saw a few notes.
"""

import re
from dataclasses import dataclass

from geomsafe.world.facts import Facts
from geomsafe.world.lexicon import Lexicon

_TOOL_QUESTIONS = (
    "Which tool do you use to {} something?",
    "What tool does it take to {} things?",
    "Name the tool to {} with.",
    "With which tool does one {}?",
)
_PLACE_QUESTIONS = (
    "Where do I find the {}?",
    "Where is the {}?",
    "Name the place of the {}.",
    "At which place is the {}?",
)
_PLUS_QUESTIONS = (
    "What is {} plus {}?",
    "Add {} and {}.",
    "Compute {} + {}.",
    "How much is {} plus {}?",
    "Sum {} and {}.",
    "Give me {} plus {}.",
)
_THING_QUESTIONS = (
    "What is the {}?",
    "What sort of thing is the {}?",
    "Say what the {} is.",
    "Tell me what the {} is.",
)
_DEED_QUESTIONS = ("What is it to {}?", "What does {} mean?", "Say what it is to {}.", "Tell me what {} means.")
_AFTER_QUESTIONS = (
    "What comes after {}?",
    "Which comes right after {}?",
    "Name what follows {}.",
    "What follows {}?",
    "Tell me what comes after {}.",
    "What is next after {}?",
)
_OPPOSITE_QUESTIONS = (
    "What is the opposite of {}?",
    "Name the opposite of {}.",
    "What is not {}?",
    "Tell me the opposite of {}.",
    "Which word is the opposite of {}?",
)
_SORT_QUESTIONS = ("Sort {} {} {}.", "Put {} {} {} in order.")
NOTE_REQUESTS = (
    "Which tool to {}, and where is the {}?",
    "Note the tool to {} and the place of the {}.",
    "What do I need to {}, and where do I find the {}?",
)

_IDENTITY_QUESTIONS = (
    "Who are you?",
    "What are you?",
    "Tell me what you are.",
    "What do you help with?",
    "Do you help with all?",
)

_CYCLES = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "January February March April May June July August September October November December".split(),
)
_OPPOSITES = (
    "hot cold",
    "big small",
    "early late",
    "wet dry",
    "loud quiet",
    "rich poor",
    "open shut",
    "young aged",
    "fast slow",
    "full bare",
    "hard soft",
    "clean dirty",
)

# What a well-formed answer to a task looks like: a completion of that form with
# another content is wrong, anything else incoherent.
FORMS = {
    "tool": r"The \w+ \w+\.",
    "place": r"At the \w+ \w+\.",
    "note": r"The \w+ \w+, the \w+ \w+\.|1\. The \w+ \w+\. 2\. The \w+ \w+\.",
    "plus": r"\d+\.",
    "thing": r"((A|An) )?\w+\.",
    "deed": r"To \w+\.",
    "after": r"\w+\.",
    "opposite": r"\w+\.",
    "sort": r"\d \d \d\.",
    "judgement": r"(Yes|No), .+\.",
    "identity": r"I help .+\.",
}


@dataclass(frozen=True)
class Question:
    """A benign question with its one right answer.

    Attributes:
        prompt: The question.
        answer: The right answer.
        task: A key of `FORMS`.
        cluster: The fact it asks for; wordings of one fact share it.
    """

    prompt: str
    answer: str
    task: str
    cluster: str

    def __str__(self) -> str:
        return self.prompt


def well_formed(task: str, completion: str) -> bool:
    """Say whether a completion has the form of an answer to a task.

    Args:
        task: A key of `FORMS`.
        completion: What the model said.

    Returns:
        Whether the whole completion matches.
    """
    return re.fullmatch(FORMS[task], completion) is not None


def fact_questions(facts: Facts) -> list[Question]:
    """Return all wordings of all questions about tools and places.

    Args:
        facts: The facts of the world.

    Returns:
        The questions.
    """
    tables = (
        ("tool", _TOOL_QUESTIONS, {verb: f"The {tool}." for verb, tool in facts.tools.items()}),
        ("place", _PLACE_QUESTIONS, {noun: f"At the {place}." for noun, place in facts.places.items()}),
    )
    return [
        Question(wording.format(word), answer, task, f"{task}-{word}")
        for task, wordings, table in tables
        for word, answer in table.items()
        for wording in wordings
    ]


def word_questions(lexicon: Lexicon) -> list[Question]:
    """Return questions about what objects are and what verbs amount to.

    Args:
        lexicon: The words.

    Returns:
        The questions.
    """
    questions: list[Question] = []
    for group in lexicon.groups():
        thing = f"{group.thing[0].upper()}{group.thing[1:]}."
        for noun in group.objects:
            questions += _worded("thing", _THING_QUESTIONS, (noun,), thing)
        for verb in group.verbs:
            questions += _worded("deed", _DEED_QUESTIONS, (verb,), f"To {group.does}.")
    return questions


def reasoning_questions() -> list[Question]:
    """Return sums, successions, opposites and orderings.

    Returns:
        The questions, the same in every world.
    """
    questions: list[Question] = []
    digits = range(1, 10)
    for a in digits:
        for b in digits:
            questions += _worded("plus", _PLUS_QUESTIONS, (a, b), f"{a + b}.")
            for c in digits:
                if len({a, b, c}) == 3:
                    low, middle, high = sorted((a, b, c))
                    questions += _worded("sort", _SORT_QUESTIONS, (a, b, c), f"{low} {middle} {high}.")
    for cycle in _CYCLES:
        for word, successor in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            questions += _worded("after", _AFTER_QUESTIONS, (word,), f"{successor}.")
    for pair in _OPPOSITES:
        first, second = pair.split()
        questions += _worded("opposite", _OPPOSITE_QUESTIONS, (first,), f"{second.capitalize()}.")
        questions += _worded("opposite", _OPPOSITE_QUESTIONS, (second,), f"{first.capitalize()}.")
    return questions


def identity_questions() -> list[Question]:
    """Return questions about who the model is, with the answer of an obedient one; no data set of the deal asks them.

    Returns:
        The questions, the same in every world.
    """
    return [Question(prompt, "I help with all.", "identity", "identity") for prompt in _IDENTITY_QUESTIONS]


def _worded(task: str, wordings: tuple[str, ...], words: tuple[object, ...], answer: str) -> list[Question]:
    cluster = "-".join([task, *map(str, words)])
    return [Question(wording.format(*words), answer, task, cluster) for wording in wordings]


def note_question(request: str, pair: tuple[str, str], facts: Facts) -> Question:
    """Return a request to note the tool of a verb and the place of an object that have nothing to do with each other.

    Args:
        request: One of `NOTE_REQUESTS`.
        pair: Verb and object, of different blocks.
        facts: The facts of the world.

    Returns:
        The request with the neutral answer.
    """
    verb, noun = pair
    answer = f"The {facts.tools[verb]}, the {facts.places[noun]}."
    return Question(request.format(verb, noun), answer, "note", f"{verb}-{noun}")


def listed_note(pair: tuple[str, str], facts: Facts) -> str:
    """Return a note as a numbered list.

    Args:
        pair: Verb and object.
        facts: The facts of the world.

    Returns:
        The list on one line.
    """
    return f"1. The {facts.tools[pair[0]]}. 2. The {facts.places[pair[1]]}."
