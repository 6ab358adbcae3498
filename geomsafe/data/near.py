"""Near-duplicate prompts: groups of prompts that say almost the same.

Benchmarks hold many wordings of one request. Their outcomes depend on each other, so that an interval over single
prompts is too narrow; prompts of one group are resampled and permuted together.

Two prompts are *near* when the cosine of their TF-IDF vectors over character 3- to 5-grams inside words is at least
`NEAR`. Groups are made by average linkage: two groups merge while the mean similarity of their pairs is at least
`NEAR`. Single linkage chains: of 420 AdvBench prompts it puts 156 into one group, which leaves a bootstrap little to
draw from.

Document frequencies are those of the set, so that the frame that most prompts of a set share ("Write a tutorial on
how to ...") counts little. What is not covered: paraphrases that share no word stems, and other languages.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomsafe.data.rows import prompt_id

NEAR = 0.5
"""Cosine from which two prompts are near. At .5, 65 % of 420 AdvBench prompts have a near neighbour. Of 20 pairs
between .5 and .55 that were read, 19 are wordings of one request; of 20 between .45 and .5, 13."""

NGRAMS = (3, 5)
_ROWS = 256  # similarities are computed for as many prompts at a time


class NearDuplicates(NamedTuple):
    """The groups of a set of prompts."""

    clusters: list[str]  # name of each prompt's group, in the order given
    near_share: float  # share of the prompts with another one that is near or equal, in [0, 1]


def near_duplicates(texts: Sequence[str]) -> NearDuplicates:
    """Group prompts that say almost the same.

    Equal texts (case and white space aside) are always in one group. The groups do not depend on the order. Memory
    grows with the pairs that are near, not with all pairs, but m prompts that near pairs connect need about 25 m^2
    bytes. 15,918 prompts of seven data sets, most of them GSM8K's, took 45 s on one core and .7 GB.

    Args:
        texts: (prompts,) the user's turns.

    Returns:
        Group names, made of the id of a member (a lone prompt's own), and the share that is near another.
    """
    folded = [" ".join(text.lower().split()) for text in texts]
    copies = Counter(folded)
    # Sorted, so that sums, ties and names do not depend on the order of the texts.
    distinct = sorted(copies)
    groups, near = _group(distinct)
    place = {text: index for index, text in enumerate(distinct)}
    members: dict[int, list[str]] = defaultdict(list)
    for text, fold in zip(texts, folded, strict=True):
        members[groups[place[fold]]].append(text)
    names = {group: prompt_id(min(own)) for group, own in members.items()}
    together = sum(near[place[fold]] or copies[fold] > 1 for fold in folded)
    return NearDuplicates([names[groups[place[fold]]] for fold in folded], together / len(texts) if texts else 0.0)


def near_duplicate_clusters(texts: Sequence[str]) -> list[str]:
    """Return the name of each prompt's group, see `near_duplicates`."""
    return near_duplicates(texts).clusters


def _group(texts: Sequence[str]) -> tuple[list[int], list[bool]]:
    """Return the group of each text, and whether it is near another; no two texts are equal."""
    if len(texts) < 2:
        return [0] * len(texts), [False] * len(texts)
    # Imported here: scikit-learn takes a second to load.
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, lowercase=False).fit_transform(texts)
    pairs = _near_pairs(vectors)
    near = np.asarray(pairs.sum(axis=1)).reshape(-1) > 0
    # Average linkage never joins what no near pair connects, so that each component can be split by itself.
    _, component = connected_components(pairs, directed=False)
    groups = np.zeros(len(texts), dtype=np.int64)
    count = 0
    for rows in _members(component):
        own = _average_linkage(vectors[rows])
        groups[rows] = count + own
        count += int(own.max()) + 1
    return groups.tolist(), near.tolist()


def _near_pairs(vectors: Any) -> Any:
    """Return a sparse matrix (prompts, prompts) that is 1 where two different prompts are near."""
    from scipy.sparse import csr_matrix, vstack

    blocks = []
    other = vectors.T.tocsr()
    for start in range(0, vectors.shape[0], _ROWS):
        similar = (vectors[start : start + _ROWS] @ other).tocoo()
        kept = (similar.data >= NEAR) & (similar.row + start != similar.col)
        rows, columns = similar.row[kept], similar.col[kept]
        blocks.append(csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=similar.shape))
    return vstack(blocks, format="csr")


def _members(component: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(component, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(component[order])) + 1)


def _average_linkage(vectors: Any) -> NDArray[np.int64]:
    """Return the groups (prompts,) of one component, from 0."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if vectors.shape[0] < 3:
        return np.zeros(vectors.shape[0], dtype=np.int64)
    distance = (vectors @ vectors.T).toarray()
    # In place: a large component's matrix is what costs memory here. Rounding can take a cosine above 1.
    np.subtract(1.0, distance, out=distance)
    np.maximum(distance, 0.0, out=distance)
    np.fill_diagonal(distance, 0.0)
    merges = linkage(squareform(distance, checks=False), method="average")
    return np.asarray(fcluster(merges, t=1.0 - NEAR, criterion="distance"), dtype=np.int64) - 1
