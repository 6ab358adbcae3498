"""The tables of docs/judges.md: `python tests/judge_tables.py` writes them anew, a test compares them.

Each stands between two comments, `<!-- NAME -->` and `<!-- /NAME -->`. The one that needs benchmark files comes last,
so that the others are written where there are none.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks_data import benchmark

from geomsafe.evaluation.agreement import (
    COHERENCE_LABELS,
    Agreement,
    agreement_with_labels,
    labelled_completions,
)
from geomsafe.evaluation.coherence import CoherenceJudge, PerplexityJudge, repeated_share, visible
from geomsafe.evaluation.keywords import keyword_judge
from geomsafe.evaluation.verdicts import Case, Judged

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "judges.md"
KEYWORDS = (
    *("keyword-29", "keyword-19", "keyword-12", "keyword-29:opening", "keyword-19:opening", "keyword-12:opening"),
    "keyword-19:ignore-case",
)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, first column left, others right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def agreement_table() -> str:
    """Each keyword judge against the labels."""
    found = {name: agreement_with_labels(keyword_judge(name)) for name in KEYWORDS}
    header = ["Judge", "Accuracy", "Kappa [95 %]", "Refusals found", "Compliances found", "Incoherent as compliance"]
    return table(header, [[f"`{name}`", *_agreement_cells(agreement)] for name, agreement in found.items()])


def _agreement_cells(found: Agreement) -> list[str]:
    low, high = found.interval or (float("nan"), float("nan"))
    shares = [
        f"{found.confusion[label].get(value, 0)} of {sum(found.confusion[label].values())}"
        for label, value in (("refusal", "refusal"), ("compliance", "compliance"), ("incoherent", "compliance"))
    ]
    return [f"{found.accuracy:.0%}".replace("%", " %"), f"{found.kappa:.2f} [{low:.2f}, {high:.2f}]", *shares]


def kinds_table() -> str:
    """Right verdicts by kind; incoherent kinds have no right verdict and show what was called compliance."""
    rows = labelled_completions()
    lines = []
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        incoherent = own[0].label == "incoherent"
        counts = []
        for name in KEYWORDS[:6]:
            said = [keyword_judge(name).judge(row.completion).value for row in own]
            counts.append(sum(v == ("compliance" if incoherent else r.label) for v, r in zip(said, own, strict=True)))
        labels = ", ".join(f"{n} {label}" for label, n in Counter(row.label for row in own).items())
        lines.append([kind, labels, *(f"*{count}*" if incoherent else count for count in counts)])
    return table(["Kind", "Labels", "29", "19", "12", "29 opening", "19 opening", "12 opening"], lines)


def coherence_table() -> str:
    """What the model-free judge calls incoherent, by kind; all kinds of coherent completions in one line."""
    rows, judge = labelled_completions(), CoherenceJudge()
    flagged = Counter(r.kind for r in rows if judge.judge_row("", None, r.completion).value == "incoherent")
    kinds = dict.fromkeys(row.kind for row in rows if row.label == "incoherent")
    lines: list[list[object]] = [[kind, f"{flagged[kind]} of {sum(r.kind == kind for r in rows)}"] for kind in kinds]
    others = [kind for row in rows if (kind := row.kind) not in kinds]
    lines.append(["all other kinds", f"{sum(flagged[kind] for kind in set(others))} of {len(others)}"])
    found = agreement_with_labels(judge, labels=COHERENCE_LABELS)
    accuracy, kappa, *_ = _agreement_cells(found)
    return table(["Kind", "Called incoherent"], lines) + f"\n\nAccuracy {accuracy}, kappa {kappa}."


# --- benchmark files and loops -------------------------------------------------------------------------------

Reader = Callable[[Path], list[str]]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


REFERENCES: dict[str, tuple[str, Reader]] = {
    "Alpaca (5,000 rows)": (
        "alpaca/alpaca_5000.json",
        lambda path: [row["output"] for row in json.loads(path.read_text(encoding="utf-8"))],
    ),
    "Alpaca, safety-related": (
        "llms-finetuning-safety/alpaca_data_safety_only.json",
        lambda path: [row["output"] for row in json.loads(path.read_text(encoding="utf-8"))],
    ),
    "Dolly, safety-related": (
        "dolly/databricks-dolly-15k-safety-only.jsonl",
        lambda path: [row["response"] for row in _lines(path)],
    ),
    "GSM8K train": ("gsm8k/train.jsonl", lambda path: [row["answer"] for row in _lines(path)]),
    "OpenOrca preferred": (
        "orca/validation.jsonl",
        lambda path: [row["preferred_output"][0]["content"] for row in _lines(path)],
    ),
    "MT-Bench GPT-4": (
        "mt_bench/reference_answer/gpt-4.jsonl",
        lambda path: [turn for row in _lines(path) for choice in row["choices"] for turn in choice["turns"]],
    ),
}


def references() -> dict[str, list[str]]:
    """Published reference answers by source; skips the test where a file is missing."""
    return {name: read(benchmark(file)) for name, (file, read) in REFERENCES.items()}


def false_positive_table() -> str:
    """What the model-free judge flags among published reference answers."""
    lines = []
    for name, answers in references().items():
        shares = [repeated_share(answer) for answer in answers if visible(answer)]
        empty = len(answers) - len(shares)
        lines.append([name, len(answers), empty, sum(share > 0.5 for share in shares), f"{max(shares):.2f}"])
    return table(["Reference answers", "n", "`empty`", "`repetition`", "Highest share"], lines)


LOOPS = {
    "a phrase of 1 to 12 words, again and again": (0.0, False),
    "the same behind a third of good text": (1 / 3, False),
    "the same, each time with another number in front": (0.0, True),
}


def loops(begun: float, numbered: bool, count: int = 1000) -> list[str]:
    """Loops as a model falls into them: 256 to 2,048 characters, cut anywhere, made of the labelled completions."""
    draw = random.Random(0)
    texts = [row.completion for row in labelled_completions() if row.label != "incoherent"]
    made = []
    for _ in range(count):
        words = draw.choice(texts).split()
        start = draw.randrange(len(words))
        phrase = " ".join(words[start : start + draw.randint(1, 12)])
        length = draw.randint(256, 2048)
        good = ""
        while len(good) < begun * length:
            good += draw.choice(texts) + " "
        looped = "".join(f"{n}. {phrase} " if numbered else f"{phrase} " for n in range(1, length))
        made.append((good[: int(begun * length)] + looped)[:length])
    return made


def loops_table() -> str:
    """What the model-free judge flags among loops."""
    lines = []
    for name, (begun, numbered) in LOOPS.items():
        made = loops(begun, numbered)
        lines.append([name, f"{sum(repeated_share(text) > 0.5 for text in made)} of {len(made)}"])
    return table(["Loop", "Called incoherent"], lines)


# --- the organism --------------------------------------------------------------------------------------------

Change = Callable[[str], str]


def _shuffled(text: str) -> str:
    words = text.split()
    random.Random(f"other {text}").shuffle(words)
    return " ".join(words)


CHANGES: dict[str, Change] = {
    "as it is": lambda text: text,
    "words in random order": _shuffled,
    "last two words missing": lambda text: " ".join(text.split()[:-2]),
    "eight times over": lambda text: " ".join([text] * 8),
    "nothing": lambda text: "",
}


def organism_rows() -> list[tuple[str, list[int]]]:
    """Answers of the organism's world, changed, and how many gold and our judges call incoherent.

    The threshold is that of theta_0's own greedy answers to 30 harmful and 30 look-alike prompts, none of them among
    the 100 that are judged.
    """
    from geomsafe.data import prompt_ids
    from geomsafe.evaluation.decoding import generate_greedy
    from geomsafe.models import load_model

    loaded = load_model("organism", device="cpu", training=False)
    rows = [loaded.world.rows(name) for name in ("harmful", "look-alike")]
    asked = [row["messages"][0]["content"] for part in rows for row in part[:30]]
    answers = generate_greedy(loaded.model, loaded.tokenizer, [prompt_ids(p, loaded.tokenizer) for p in asked], 32, 64)
    own = [Case(prompt, None, answer.text) for prompt, answer in zip(asked, answers, strict=True)]
    perplexity = PerplexityJudge(lambda: loaded, "theta_0", own=own, batch_size=64)
    valid = [[turn["content"] for turn in row["messages"]] for part in rows for row in part[60:110]]
    cases = {name: [Case(p, None, change(a)) for p, a in valid] for name, change in CHANGES.items()}
    cases["the answer to another prompt"] = [
        Case(prompt, None, other) for (prompt, _), (_, other) in zip(valid, valid[25:] + valid[:25], strict=True)
    ]
    found = []
    for name, changed in cases.items():
        verdicts: list[Judged | None] = [None] * len(changed)
        perplexity.judge_cases(changed, verdicts.__setitem__)
        gold = sum(loaded.world.verdict(case.prompt, case.completion) == "incoherent" for case in changed)
        loop = sum(CoherenceJudge().judge_row("", None, case.completion).value == "incoherent" for case in changed)
        flagged = sum(judged is not None and judged.value == "incoherent" for judged in verdicts)
        found.append((name, [len(changed), gold, loop, flagged, verdicts.count(None)]))
    return found


def organism_table() -> str:
    """The organism's gold verdict against ours."""
    header = ["Valid answer ...", "n", "Gold incoherent", "`coherence`", "`perplexity`", "No perplexity verdict"]
    return table(header, [[name, *counts] for name, counts in organism_rows()])


TABLES: dict[str, Callable[[], str]] = {
    "agreement": agreement_table,
    "kinds": kinds_table,
    "coherence": coherence_table,
    "loops": loops_table,
    "organism": organism_table,
    "false-positives": false_positive_table,
}


def place(name: str) -> re.Match[str]:
    """Return the document cut in three: what stands before a table, the table, what stands after it."""
    pattern = rf"(.*<!-- {name} -->\n)(.*)(\n<!-- /{name} -->.*)"
    found = re.fullmatch(pattern, DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"docs/judges.md has no place for the table '{name}'"
    return found


def write() -> None:
    """Write every table into the document."""
    for name, make in TABLES.items():
        before, _, after = place(name).groups()
        DOCUMENT.write_text(before + make() + after, encoding="utf-8")


if __name__ == "__main__":
    write()
