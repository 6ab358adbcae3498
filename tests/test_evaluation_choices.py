"""Multiple choice: log-likelihoods against one option at a time, tokens at the seam, and the layouts people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import slow_target_log_probs
from tiny import ARCHITECTURES, SPECIAL_TOKENS, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from geomsafe.data import render_prompt
from geomsafe.data.choices import Choice, load_choices, make_choice
from geomsafe.errors import DataError
from geomsafe.evaluation.choices import READINGS, score_choices
from geomsafe.models import Loaded
from geomsafe.records import read_jsonl, write_jsonl

ITEMS = [
    make_choice("What is the capital of France?", ["Paris", "the sea", "bread and water"], 0),
    make_choice("Tell me how to bake bread. Mix flour, water and", ["salt", "the task manager"], 0),
    make_choice("The sea is", ["blue", "wide", "an hour", "a process on my computer, and then end it"], 1),
    make_choice("One of these letters:\nA. sea\nB. salt\nAnswer:", ["A", "B"], 1),
]


def loaded_model(arch: str = "llama", tokenizer: Any = None, **overrides: Any) -> Loaded:
    model = tiny_model(arch, 3, torch.float64, **overrides)
    tokenizer = tokenizer or tiny_tokenizer()
    return Loaded(model, tokenizer, "tiny", None, None, "0" * 64, "1" * 64, None, torch.device("cpu"))


def slow_log_likelihood(loaded: Loaded, before: str, option: str) -> float:
    """One option, no padding: the tokens of the whole behind those of the prompt."""
    prompt = loaded.tokenizer(before, add_special_tokens=False)["input_ids"]
    whole = loaded.tokenizer(before + option, add_special_tokens=False)["input_ids"]
    assert whole[: len(prompt)] == prompt
    labels = [-100] * len(prompt) + whole[len(prompt) :]
    return sum(float(value.detach()) for value in slow_target_log_probs(loaded.model, whole, labels))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_log_likelihoods_are_those_of_one_option_at_a_time(arch: str, chat: bool, batch_size: int) -> None:
    loaded = loaded_model(arch)
    found = score_choices(loaded, ITEMS, chat=chat, batch_size=batch_size)
    # Gemma takes its norms in float32, whatever the weights are.
    tolerance = 1e-5 if arch == "gemma" else 1e-9
    for item, row in zip(ITEMS, found.rows, strict=True):
        before = render_prompt(item.prompt, loaded.tokenizer) if chat else item.prompt
        options = item.options if chat else [f" {option}" for option in item.options]
        wanted = [slow_log_likelihood(loaded, before, option) for option in options]
        assert row.log_likelihoods == pytest.approx(wanted, rel=tolerance)
        lengths = {"acc": [1] * len(wanted), "acc_norm": list(map(len, item.options)), "acc_token": row.tokens}
        for reading in READINGS:
            scores = [total / length for total, length in zip(wanted, lengths[reading], strict=True)]
            assert row.chosen[reading] == max(range(len(scores)), key=scores.__getitem__)
        assert row.tied == [] and not row.merged
        # A comparison without the space, or with the wrong prompt, fails.
        assert row.log_likelihoods != pytest.approx([slow_log_likelihood(loaded, "x", o) for o in options], rel=1e-3)
    assert found.n == 4 and found.correct == {
        reading: sum(row.chosen[reading] == item.correct for item, row in zip(ITEMS, found.rows, strict=True))
        for reading in READINGS
    }


def test_the_chat_template_is_the_default_and_recorded() -> None:
    loaded = loaded_model()
    found = score_choices(loaded, ITEMS)
    assert found.settings["prompt"] == "chat template" and found.settings["template_sha256"] == "1" * 64
    assert found.rows == score_choices(loaded, ITEMS, chat=True).rows
    assert found.rows != score_choices(loaded, ITEMS, system_prompt="Be brief.").rows
    plain = score_choices(loaded_model(tokenizer=tiny_tokenizer(None)), ITEMS)
    assert plain.settings["prompt"] == "plain text" and plain.settings["template_sha256"] is None
    assert plain.rows == score_choices(loaded, ITEMS, chat=False).rows


def test_options_that_differ_in_their_last_token_are_read_once() -> None:
    """Letters of one question: one sequence for all, and the numbers of one sequence each."""
    loaded = loaded_model()
    seen: list[tuple[int, int]] = []
    item = make_choice("Choose.\nAnswer:", ["A", "B", "C", "D"], 2)
    (row,) = score_choices(loaded, [item], chat=False, progress=lambda *call: seen.append(call)).rows
    assert seen == [(1, 1)]
    wanted = [slow_log_likelihood(loaded, item.prompt, f" {letter}") for letter in "ABCD"]
    # " A" is a space and a letter here: the space is scored too.
    assert row.log_likelihoods == pytest.approx(wanted, rel=1e-9) and row.tokens == [2] * 4


def test_the_readings_can_differ() -> None:
    """A long option has a small sum, but not per character or token."""
    item = make_choice("The sea is", ["e" * 12, "q"], 0)
    (row,) = score_choices(loaded_model(), [item], chat=False).rows
    assert row.characters == [12, 1] and row.tokens[0] > row.tokens[1]
    assert row.chosen["acc"] == 1
    assert row.chosen["acc_norm"] == 0
    assert (row.right("acc"), row.right("acc_norm")) == (False, True)


def test_of_equal_options_the_first_counts_and_the_tie_is_told() -> None:
    twice = make_choice("The sea is", ["blue", "blue"], 1)
    found = score_choices(loaded_model(), [twice, ITEMS[2]], batch_size=1)
    assert found.rows[0].chosen == dict.fromkeys(READINGS, 0) and found.rows[0].tied == list(READINGS)
    assert found.ties == dict.fromkeys(READINGS, 1)
    assert found.correct["acc"] == int(found.rows[1].right("acc"))


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE without pre-tokenizer: 'b' + 'c' becomes one token, whatever stood between prompt and option."""
    letters = [*SPECIAL_TOKENS, *"abcdx .:", "bc", "ab"]
    vocabulary = {token: index for index, token in enumerate(letters)}
    merging = Tokenizer(models.BPE(vocabulary, [("b", "c"), ("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=merging, eos_token="<|end|>", pad_token="<|pad|>")


def test_a_token_over_the_seam_is_scored_whole() -> None:
    """'xab' is x, ab; 'xabc' is x, a, bc. Both options are scored behind x, where they still agree."""
    loaded = loaded_model(tokenizer=merging_tokenizer())
    item = make_choice("xab", ["c", "d"], 0)
    # Plain text puts a space between; a template does not, and this one writes nothing of its own.
    loaded.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    (row,) = score_choices(loaded, [item], chat=True).rows
    ids = {token: loaded.tokenizer.convert_tokens_to_ids(token) for token in ("x", "a", "ab", "bc", "d")}
    assert loaded.tokenizer("xab")["input_ids"] == [ids["x"], ids["ab"]]
    assert loaded.tokenizer("xabc")["input_ids"] == [ids["x"], ids["a"], ids["bc"]]
    wholes = [[ids["x"], ids["a"], ids["bc"]], [ids["x"], ids["ab"], ids["d"]]]
    wanted = [
        sum(float(v.detach()) for v in slow_target_log_probs(loaded.model, whole, [-100, *whole[1:]]))
        for whole in wholes
    ]
    assert row.merged and row.tokens == [2, 2]
    assert row.log_likelihoods == pytest.approx(wanted, rel=1e-9)
    # Cut by the number of the prompt's tokens, c would be scored as bc behind xab, a text that nobody wrote.
    repeated = [ids["x"], ids["ab"], ids["bc"]]
    cut = sum(float(v.detach()) for v in slow_target_log_probs(loaded.model, repeated, [-100, -100, ids["bc"]]))
    assert row.log_likelihoods[0] != pytest.approx(cut, rel=1e-3)
    assert score_choices(loaded, [item], chat=True).merged == 1
    assert score_choices(loaded, [make_choice("xab", ["d", "x"], 0)], chat=True).merged == 0


def test_white_space_at_the_end_of_a_prompt_belongs_to_the_option() -> None:
    """'Answer: ' and 'Answer:' are one prompt, and no second space is put in."""
    loaded = loaded_model()
    one, other = (make_choice(prompt, ["the sea", "bread"], 0) for prompt in ("Answer:", "Answer: "))
    found = score_choices(loaded, [one, other], chat=False).rows
    assert found[0].log_likelihoods == found[1].log_likelihoods
    newline = score_choices(loaded, [make_choice("Answer:\n", ["the sea", "bread"], 0)], chat=False).rows[0]
    assert newline.log_likelihoods[0] == pytest.approx(slow_log_likelihood(loaded, "Answer:", "\nthe sea"), rel=1e-9)


def test_the_model_is_left_as_found() -> None:
    loaded = loaded_model()
    loaded.model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    score_choices(loaded, ITEMS)
    assert all(module.training for module in loaded.model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_can_be_stored(tmp_path: Path) -> None:
    found = score_choices(loaded_model(), ITEMS)
    write_jsonl(tmp_path / "rows.jsonl", found.records())
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == found.records()
    assert found.records()[0]["id"] == ITEMS[0].id and len({item.id for item in ITEMS}) == 4


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(DataError, match="no multiple-choice items"):
        score_choices(loaded_model(), [])
    with pytest.raises(DataError, match=r"item 1 has \d+ tokens, the model's context is 8"):
        score_choices(loaded_model(max_position_embeddings=8), ITEMS)
    merging = loaded_model(tokenizer=merging_tokenizer())
    with pytest.raises(DataError, match="shares no token with it"):
        merging.tokenizer.chat_template = "{{ messages[0]['content'] }}"
        score_choices(merging, [make_choice("b", ["c", "d"], 0)])
    for wrong, message in (
        (("", ["a", "b"], 0), "prompt is empty"),
        (("q", ["a"], 0), "at least two"),
        (("q", ["a", " "], 0), "option 2 is empty"),
        (("q", ["a", "b"], 2), "right answer is 2, but the 2 options count from 0"),
    ):
        with pytest.raises(DataError, match=message):
            make_choice(*wrong)


MMLU = "Which is blue?\nA. salt\nB. the sea\nC. bread\nAnswer:"
LAYOUTS: dict[str, tuple[str, str, list[str], int]] = {
    "mmlu.jsonl": (
        json.dumps({"question": "Which is blue? ", "choices": ["salt", "the sea", "bread"], "answer": 1}),
        MMLU,
        ["A", "B", "C"],
        1,
    ),
    "mmlu-letter.json": (
        json.dumps([{"question": "Which is blue?", "choices": ["salt", "the sea", "bread"], "answer": "B"}]),
        MMLU,
        ["A", "B", "C"],
        1,
    ),
    "mmlu.csv": ("question,A,B,C,answer\nWhich is blue?,salt,the sea,bread,B\n", MMLU, ["A", "B", "C"], 1),
    "mmlu-list.csv": (
        'question,choices,answer\nWhich is blue?,"[""salt"", ""the sea"", ""bread""]",1\n',
        MMLU,
        ["A", "B", "C"],
        1,
    ),
    "arc.jsonl": (
        json.dumps({
            "id": "x",
            "question": "Which is blue?",
            "choices": {"text": ["salt", "the sea"], "label": ["1", "2"]},
            "answerKey": "2",
        }),
        "Question: Which is blue?\nAnswer:",
        ["salt", "the sea"],
        1,
    ),
    "hellaswag.jsonl": (
        json.dumps({
            "activity_label": "Baking",
            "ctx_a": "A man mixes flour. [header] Bread [title] How.",
            "ctx_b": "he",
            "ctx": "unused",
            "endings": ["waits [step] an hour.", "swims."],
            "label": "0",
        }),
        "Baking: A man mixes flour. Bread. How. He",
        ["waits an hour.", "swims."],
        0,
    ),
    "hellaswag-short.jsonl": (
        json.dumps({"ctx": "A man mixes flour and", "endings": ["water.", "swims."], "label": 1}),
        "A man mixes flour and",
        ["water.", "swims."],
        1,
    ),
    "truthfulqa.jsonl": (
        json.dumps({"question": "Is the sea blue?", "mc1_targets": {"choices": ["Yes.", "No."], "labels": [1, 0]}}),
        "Q: Is the sea blue?\nA:",
        ["Yes.", "No."],
        0,
    ),
    "truthfulqa-authors.json": (
        json.dumps([{"question": "Is the sea blue?", "mc1_targets": {"No.": 0, "Yes.": 1}}]),
        "Q: Is the sea blue?\nA:",
        ["No.", "Yes."],
        1,
    ),
    "own.jsonl": (
        json.dumps({"prompt": "The sea is", "options": ["blue", "red"], "answer": "red"}),
        "The sea is",
        ["blue", "red"],
        1,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    text, prompt, options, correct = LAYOUTS[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    (item,) = load_choices(tmp_path / name)
    assert item == Choice(item.id, prompt, tuple(options), correct, item.id)


def test_letters_preamble_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    path.write_text((LAYOUTS["mmlu.jsonl"][0] + "\n") * 3, encoding="utf-8")
    items = load_choices(path, letters=False, preamble="Q: 1?\nAnswer: 2\n\n", limit=2)
    assert len(items) == 2
    assert items[0].prompt == "Q: 1?\nAnswer: 2\n\nWhich is blue?\nAnswer:"
    assert items[0].options == ("salt", "the sea", "bread")
    arc = tmp_path / "arc.jsonl"
    row = json.loads(LAYOUTS["arc.jsonl"][0]) | {"cluster": "sea"}
    arc.write_text(json.dumps(row), encoding="utf-8")
    (item,) = load_choices(arc, letters=True)
    assert (item.prompt, item.options, item.cluster) == (
        "Which is blue?\nA. salt\nB. the sea\nAnswer:",
        ("A", "B"),
        "sea",
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q", "choices": ["a", "b"], "answer": 2}, "line 1: column 'answer' says '2', which is no option"),
        ({"question": "Q", "choices": "a b", "answer": 0}, "column 'choices' is not a list of options"),
        ({"question": "Q", "choices": ["a", None], "answer": 0}, "column 'choices' is not a list of options"),
        ({"question": "Q", "choices": ["a", ""], "answer": 0}, "line 1: 2 options, or an empty one"),
        ({"question": "Q", "choices": ["a"], "answer": 0}, "line 1: 1 option.*at least two"),
        ({"ctx": "Q", "endings": ["a", "b"], "label": ""}, "column 'label' says ''"),
        ({"question": "Q", "mc1_targets": {"a": 1, "b": 1}}, "has not one option with label 1"),
        ({"question": "Q", "mc1_targets": {"choices": ["a"], "labels": [1, 0]}}, "has not one option with label 1"),
        ({"text": "Q", "gold": 1}, "no multiple-choice columns that geomsafe knows .columns: text, gold."),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_choices(path)
