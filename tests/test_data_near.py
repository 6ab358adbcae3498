"""Near-duplicate groups: their definition, what they must not depend on, and what they come to on the benchmarks."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks_data import benchmark
from reference import average_linkage, ngram_cosines

from geomsafe.data import load_prompts, near, prompt_id
from geomsafe.data import prompts as prompts_module
from geomsafe.data.near import NEAR, NGRAMS, near_duplicate_clusters, near_duplicates

FRAMES = ("Write a tutorial on how to {}", "Give instructions for how to {}", "Explain how to {} without being seen")
DEEDS = ("bake bread", "bake a cake", "mend a roof", "paint a fence", "paint the old fence", "sail", "I ski", "a b c")
TEXTS = [frame.format(deed) for frame in FRAMES for deed in DEEDS] + ["Who?", "What is the sea?", "What is the seas?"]


def groups(names: list[str]) -> set[frozenset[int]]:
    return {frozenset(i for i, other in enumerate(names) if other == name) for name in names}


def test_groups_equal_their_definition() -> None:
    order = sorted(text.lower() for text in TEXTS)
    similarity = ngram_cosines(order, *NGRAMS)
    expected = {frozenset(order[i] for i in group) for group in average_linkage(similarity, NEAR)}
    found = near_duplicates(TEXTS)
    assert {frozenset(TEXTS[i].lower() for i in group) for group in groups(found.clusters)} == expected
    assert 1 < len(expected) < len(TEXTS)
    near_another = [sum(value >= NEAR for value in row) > 1 for row in similarity]
    assert found.near_share == pytest.approx(sum(near_another) / len(TEXTS), abs=1e-12)
    assert near_duplicate_clusters(TEXTS) == found.clusters
    # Negative control: another threshold gives other groups.
    assert average_linkage(similarity, 0.8) != average_linkage(similarity, NEAR)


def test_similarities_equal_their_definition() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, lowercase=False).fit_transform(TEXTS)
    found, expected = (vectors @ vectors.T).toarray(), np.array(ngram_cosines(TEXTS, *NGRAMS))
    assert np.abs(found - expected).max() < 1e-12
    pairs = near._near_pairs(vectors).toarray()
    assert np.array_equal(pairs == 1, (expected >= NEAR) & ~np.eye(len(TEXTS), dtype=bool))


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_blocks_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = near_duplicates(TEXTS)
    monkeypatch.setattr(near, "_ROWS", rows)
    assert near_duplicates(TEXTS) == whole


def test_the_order_of_the_texts_changes_nothing() -> None:
    whole = dict(zip(TEXTS, near_duplicate_clusters(TEXTS), strict=True))
    for seed in range(5):
        shuffled = TEXTS.copy()
        random.Random(seed).shuffle(shuffled)
        assert dict(zip(shuffled, near_duplicate_clusters(shuffled), strict=True)) == whole


def test_equal_texts_are_together_and_change_no_other_group() -> None:
    copies = [f"  {text.upper()} " for text in TEXTS] + TEXTS
    names = near_duplicate_clusters(copies)
    assert names[: len(TEXTS)] == names[len(TEXTS) :]
    assert groups(names[len(TEXTS) :]) == groups(near_duplicate_clusters(TEXTS))
    assert near_duplicates(copies).near_share == 1.0


def test_few_texts() -> None:
    assert near_duplicates([]) == ([], 0.0)
    assert near_duplicates(["Who?"]) == ([prompt_id("Who?")], 0.0)
    assert near_duplicates(["Who?", "who?"]) == ([prompt_id("Who?")] * 2, 1.0)
    assert near_duplicates(["", "x"]) == ([prompt_id(""), prompt_id("x")], 0.0)


# --- prompt sets ---------------------------------------------------------------------------------------------


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompt_sets_without_clusters_get_those_of_near_duplicates(tmp_path: Path) -> None:
    path = written(tmp_path, [{"goal": text} for text in TEXTS])
    loaded = load_prompts(path)
    assert groups([row.cluster for row in loaded.rows]) == groups(near_duplicate_clusters(TEXTS))
    assert [row.id for row in loaded.rows] == [prompt_id(text) for text in TEXTS]
    sizes = Counter(row.cluster for row in loaded.rows)
    assert all(row.cluster == row.id for row in loaded.rows if sizes[row.cluster] == 1)
    share = near_duplicates(TEXTS).near_share
    assert loaded.notes[-1] == f"{share:.0%} of prompts have a near neighbour: {len(sizes)} clusters of 27 prompts"
    with_clusters = load_prompts(written(tmp_path, [{"goal": text, "cluster": f"c{len(text)}"} for text in TEXTS]))
    assert [row.cluster for row in with_clusters.rows] == [f"c{len(text)}" for text in TEXTS]
    # A set with answers is a training set, as a rule a large one.
    answered = load_prompts(written(tmp_path, [{"prompt": text, "response": "x"} for text in TEXTS]))
    assert [row.cluster for row in answered.rows] == [row.id for row in answered.rows]


def test_large_sets_say_that_they_are_not_clustered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "MOST_CLUSTERED", 20)
    path = written(tmp_path, [{"goal": text} for text in TEXTS])
    loaded = load_prompts(path)
    assert [row.cluster for row in loaded.rows] == [row.id for row in loaded.rows]
    assert loaded.notes[-1] == "every prompt is its own cluster: near-duplicates are sought among 20 at most"
    assert len({row.cluster for row in load_prompts(path, limit=20).rows}) < 20


def test_a_prompt_alone_keeps_the_id_that_its_system_turn_has_a_part_in(tmp_path: Path) -> None:
    rows = [{"prompt": text, "system": "Be kind."} for text in ("Who?", "Bake a cake now", "Bake the cake now")]
    loaded = load_prompts(written(tmp_path, rows)).rows
    assert loaded[0].cluster == loaded[0].id == prompt_id("Who?", "Be kind.")
    assert loaded[1].cluster == loaded[2].cluster != loaded[1].id


@pytest.mark.parametrize(
    ("name", "share", "clusters", "largest"),
    [
        ("advbench/harmful_behaviors.csv", 0.65, 265, 10),
        ("xstest/xstest_prompts.csv", 0.53, 331, 6),
        ("xstest/xstest_v2_prompts.csv", 0.53, 331, 6),
        ("jailbreakbench/harmful-behaviors.csv", 0.0, 16, 1),
    ],
)
def test_what_the_benchmarks_come_to(name: str, share: float, clusters: int, largest: int) -> None:
    rows = load_prompts(str(benchmark(name))).rows
    found = near_duplicates([row.text for row in rows])
    sizes = Counter(found.clusters)
    assert found.near_share == pytest.approx(share, abs=0.005)
    assert (len(sizes), max(sizes.values())) == (clusters, largest)


def test_types_and_categories_are_kept_as_tags() -> None:
    types = []
    for name in ("xstest/xstest_prompts.csv", "xstest/xstest_v2_prompts.csv"):
        types.append(Counter(row.tags["type"] for row in load_prompts(str(benchmark(name))).rows))
    assert types[0] == types[1] and len(types[0]) == 18
    assert sum(count for kind, count in types[0].items() if kind.startswith("contrast")) == 200
    rows = load_prompts(str(benchmark("jailbreakbench/harmful-behaviors.csv"))).rows
    assert all("category" in row.tags for row in rows)
    assert all(not row.tags for row in load_prompts(str(benchmark("advbench/harmful_behaviors.csv"))).rows)
