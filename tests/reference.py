"""Slow, obvious references: loops over single examples in float64, nothing batched, nothing padded."""

from __future__ import annotations

import copy
import itertools
import math
import string
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betainc
from torch import Tensor

# --- gradients -----------------------------------------------------------------------------------------------


def slow_target_log_probs(model: Any, ids: Sequence[int], labels: Sequence[int]) -> list[Tensor]:
    """List log p(token | everything before it) of each target token of one unpadded sequence, from the definition."""
    logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    found = []
    for position in range(1, len(ids)):
        if labels[position] != -100:
            row = logits[position - 1]
            found.append(row[labels[position]] - torch.log(torch.exp(row - row.max()).sum()) - row.max())
    return found


def slow_block_gradients(
    model: Any, examples: Sequence[tuple[list[int], list[int]]], blocks: Sequence[int]
) -> tuple[list[dict[str, Tensor]], list[int], list[float]]:
    """Token-summed gradients by one backward pass an example, on a float64 copy in eval mode.

    Returns one {parameter: gradient} a block, the target tokens of each block and each example's loss.
    """
    slow = copy.deepcopy(model).double().eval()
    weights = {name: weight for name, weight in slow.named_parameters() if weight.requires_grad}
    sums = [{name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(max(blocks) + 1)]
    tokens = [0] * (max(blocks) + 1)
    losses = []
    for (ids, labels), block in zip(examples, blocks, strict=True):
        slow.zero_grad(set_to_none=True)
        log_probs = slow_target_log_probs(slow, ids, labels)
        loss = -torch.stack(log_probs).sum()
        loss.backward()
        for name, weight in weights.items():
            if weight.grad is not None:
                sums[block][name] += weight.grad
        tokens[block] += len(log_probs)
        losses.append(float(loss.detach()))
    return sums, tokens, losses


def slow_hessian(
    model: Any, examples: Sequence[tuple[list[int], list[int]]], scales: Sequence[float], names: Sequence[str]
) -> Tensor:
    """Dense Hessian of sum_i scales[i] * (token-summed loss of example i): one row a weight, plain attention.

    Names are those of `named_parameters`; rows and columns run over their elements in the order given.
    """
    slow = copy.deepcopy(model).double().eval()
    for config in {id(part.config): part.config for part in slow.modules() if hasattr(part, "config")}.values():
        config._attn_implementation_internal = config._experts_implementation_internal = "eager"
    weights = [dict(slow.named_parameters())[name].requires_grad_() for name in names]
    size = sum(weight.numel() for weight in weights)
    total = torch.zeros((size, size), dtype=torch.float64)
    # One graph at a time: peft's adapters on fused experts move the weight's storage in every forward pass.
    for (ids, labels), scale in zip(examples, scales, strict=True):
        loss = -scale * torch.stack(slow_target_log_probs(slow, ids, labels)).sum()
        gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        for index, value in enumerate(torch.cat([gradient.flatten() for gradient in gradients])):
            row = torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True)
            total[index] += torch.cat([part.flatten() for part in row])
    return total


Example = tuple[list[int], list[int]]  # token ids and labels of one unpadded sequence


def slow_example_gradients(
    model: Any, examples: Sequence[Example], reduction: str = "sum", names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """The definition: {parameter: (examples, *shape)} by one forward and backward pass an example, nothing padded.

    In the model's own dtype, dropout off, on a copy. A weight that the loss does not reach has gradient zero.
    """
    slow = copy.deepcopy(model).eval()
    weights = {name: weight for name, weight in slow.named_parameters() if name in (names or [name])}
    if names is None:
        weights = {name: weight for name, weight in weights.items() if weight.requires_grad}
    for weight in weights.values():
        weight.requires_grad_(True)
    rows = []
    for ids, labels in examples:
        log_probs = torch.stack(slow_target_log_probs(slow, ids, labels))
        loss = -(log_probs.sum() if reduction == "sum" else log_probs.mean())
        rows.append(torch.autograd.grad(loss, [*weights.values()], allow_unused=True))
    return _stacked(weights, rows)


def same_pass_gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token-summed gradients from one forward pass over the whole batch and one backward pass an example.

    The sequence of operations is that of any method that runs the model on this batch; only the
    products of the last step differ. The loss is our own cross-entropy in the model's dtype.
    """
    slow = copy.deepcopy(model).eval()
    weights = {name: weight for name, weight in slow.named_parameters() if weight.requires_grad}
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if bool((batch["attention_mask"][:, 0] == 0).any()):
        inputs["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    logits = slow(**inputs, use_cache=False).logits
    scores = logits[:, :-1] if logits.dtype == torch.float64 else logits[:, :-1].float()
    targets = batch["labels"][:, 1:]
    log_probs = scores.log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    losses = -(log_probs * (targets != -100)).sum(dim=1)
    found = [
        torch.autograd.grad(loss, [*weights.values()], retain_graph=True, allow_unused=True) for loss in losses.unbind()
    ]
    return _stacked(weights, found)


def _stacked(weights: dict[str, Tensor], rows: Sequence[Sequence[Tensor | None]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([torch.zeros_like(weight) if row[i] is None else row[i] for row in rows]).detach().double()
        for i, (name, weight) in enumerate(weights.items())
    }


def gram_reference(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """<G_i, G_j> of every pair of examples, from the gradients themselves."""
    return {name: torch.tensor(slow_gram([*row]), dtype=torch.float64) for name, row in rows.items()}


def preconditioned_gram_reference(rows: dict[str, Tensor], precondition: dict[str, Tensor]) -> dict[str, Tensor]:
    """<G_i, P * G_j>."""
    return {
        name: torch.stack([torch.stack([(a * precondition[name].double() * b).sum() for b in row]) for a in row])
        for name, row in rows.items()
    }


def dots_reference(rows: dict[str, Tensor], direction: dict[str, Tensor]) -> dict[str, Tensor]:
    """<G_i, D> of every example."""
    return {
        name: torch.stack([(gradient * along.double()).sum() for gradient in rows[name]])
        for name, along in direction.items()
    }


def left_basis_reference(gradient: Tensor, rank: int, input_first: bool = False) -> tuple[Tensor, Tensor]:
    """Left singular vectors (d_out, <= rank) and all singular values of one weight's gradient, by a dense SVD.

    `input_first`: the weight is stored (d_in, d_out), as GPT-2's Conv1D and embeddings are.
    """
    left, values, _ = torch.linalg.svd(gradient.double().T if input_first else gradient.double(), full_matrices=False)
    return left[:, :rank], values


# --- data ----------------------------------------------------------------------------------------------------


def ngram_cosines(texts: Sequence[str], low: int, high: int) -> list[list[float]]:
    """Cosines of TF-IDF vectors over character n-grams inside words, each word between two spaces.

    Weight of an n-gram: its count times ln((1 + texts) / (1 + texts that hold it)) + 1.
    """
    counts: list[dict[str, int]] = []
    for text in texts:
        found: dict[str, int] = {}
        for word in text.split():
            padded = f" {word} "
            shown = [padded[i : i + n] for n in range(low, high + 1) for i in range(len(padded) - n + 1)]
            for gram in shown:
                found[gram] = found.get(gram, 0) + 1
        counts.append(found)
    held = {gram: sum(gram in one for one in counts) for one in counts for gram in one}
    weights = [
        {gram: n * (math.log((1 + len(texts)) / (1 + held[gram])) + 1) for gram, n in one.items()} for one in counts
    ]
    norms = [math.sqrt(sum(value**2 for value in one.values())) for one in weights]
    return [
        [
            sum(value * b.get(gram, 0.0) for gram, value in a.items()) / (na * nb)
            for b, nb in zip(weights, norms, strict=True)
        ]
        for a, na in zip(weights, norms, strict=True)
    ]


def average_linkage(similarity: Sequence[Sequence[float]], least: float) -> set[frozenset[int]]:
    """Groups: merge the two of largest mean similarity between their members, while it is at least `least`."""
    groups = [[index] for index in range(len(similarity))]
    while len(groups) > 1:
        means = {
            (i, j): sum(similarity[a][b] for a in groups[i] for b in groups[j]) / (len(groups[i]) * len(groups[j]))
            for i, j in itertools.combinations(range(len(groups)), 2)
        }
        (i, j), best = max(means.items(), key=lambda item: item[1])
        if best < least:
            break
        groups[i] += groups.pop(j)
    return {frozenset(group) for group in groups}


# --- evaluation ----------------------------------------------------------------------------------------------


def greedy_without_cache(model: Any, ids: Sequence[int], length: int, stops: set[int]) -> list[int]:
    """Greedy decoding by definition: one forward pass over the whole text for every token, no cache, no padding."""
    text = list(ids)
    with torch.no_grad():
        while len(text) - len(ids) < length:
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
            if text[-1] in stops:
                break
    return text[len(ids) :]


def slow_word_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 from its definition: shared words counted one by one, harmonic mean of precision and recall."""

    def words(text: str) -> list[str]:
        kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return [word for word in kept.split() if word not in {"a", "an", "the"}]

    said, left = words(answer), words(reference)
    wanted, shared = len(left), 0
    if not said or not left:
        return float(said == left)
    for word in said:
        if word in left:
            left.remove(word)
            shared += 1
    if shared == 0:
        return 0.0
    precision, recall = shared / len(said), shared / wanted
    return 2 * precision * recall / (precision + recall)


def slow_ratio_error(sums: Sequence[float], sizes: Sequence[float], clusters: Sequence[str]) -> float:
    """Standard error of sum(sums) / sum(sizes), clusters as units: a double sum over all pairs of one cluster."""
    ratio, total = sum(sums) / sum(sizes), 0.0
    for i, j in itertools.product(range(len(sums)), repeat=2):
        if clusters[i] == clusters[j]:
            total += (sums[i] - ratio * sizes[i]) * (sums[j] - ratio * sizes[j])
    groups = len(set(clusters))
    return math.sqrt(groups / (groups - 1) * total) / sum(sizes)


# --- methods ---------------------------------------------------------------------------------------------------


def cheapest_depths(prompts: Sequence[Sequence[int]], one_pass: int) -> tuple[int, list[int]]:
    """Every set of depths below the shortest prompt tried: least cost in tokens, and the first set that has it."""
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    best: tuple[int, list[int]] | None = None
    for count in range(shortest):
        for depths in itertools.combinations(range(1, shortest), count):
            cost, read = 0, 0
            for depth in depths:
                cost += one_pass + len({tuple(ids[:depth]) for ids in prompts}) * (depth - read)
                read = depth
            cost += len(prompts) * (longest - read)
            if best is None or cost < best[0]:
                best = cost, list(depths)
    if best is None:
        raise ValueError("no prompts")
    return best


def ema_of_lists(path: list[list[float]], eta: float, every: int) -> list[float]:
    """theta_ema <- (1 - eta) theta_ema + eta theta at steps every, 2 every, ..., from theta_0 = path[0]."""
    average = [float(value) for value in path[0]]
    for step in range(1, len(path)):
        if step % every == 0:
            average = [(1 - eta) * old + eta * new for old, new in zip(average, path[step], strict=True)]
    return average


def spf_projection(
    gradients: dict[str, Tensor],
    safety: dict[str, Tensor],
    basis: dict[str, Tensor] | None = None,
    *,
    rank: int,
    share: float = 0.5,
    side: str = "left",
    test: str = "global",
    input_first: Collection[str] = (),
) -> dict[str, Tensor]:
    """SPF's projection of all gradients, each in conflict decomposed densely.

    `basis` gives the gradients that the subspaces are those of (default: `safety`). Names in `input_first` are stored
    (d_in, d_out); three axes are experts.
    """
    signs = {name: float((gradients[name] * safety[name]).sum()) for name in gradients}
    together = {
        name: {
            "global": sum(signs.values()),
            "layer": sum(dot for other, dot in signs.items() if _layer(other) == _layer(name)),
            "parameter": signs[name],
        }[test]
        for name in gradients
    }
    return {
        name: _spf_weight(gradient, (basis or safety)[name], rank, share, side, name in input_first)
        if together[name] < 0
        else gradient
        for name, gradient in gradients.items()
    }


def _layer(name: str) -> str:
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def _spf_weight(gradient: Tensor, safety: Tensor, rank: int, share: float, side: str, input_first: bool) -> Tensor:
    if gradient.dim() == 3:
        pairs = zip(gradient, safety, strict=True)
        return torch.stack([_spf_weight(one, other, rank, share, side, input_first) for one, other in pairs])
    if input_first:
        return _spf_weight(gradient.T, safety.T, rank, share, side, False).T
    matrix, anchor = gradient.reshape(len(gradient), -1), safety.reshape(len(safety), -1)
    left, values, right = torch.linalg.svd(anchor, full_matrices=False)
    kept = min(rank, max(1, int(share * min(matrix.shape))), int((values > 1e-12 * values[0]).sum()))
    if side in {"left", "both"} or gradient.dim() == 1:
        matrix = matrix - left[:, :kept] @ left[:, :kept].T @ matrix
    if side in {"right", "both"} and gradient.dim() > 1:
        matrix = matrix - matrix @ right[:kept].T @ right[:kept]
    return matrix.reshape(gradient.shape)


def pcgrad_projection(gradients: dict[str, Tensor], against: dict[str, Tensor]) -> dict[str, Tensor]:
    """PCGrad's projection of one flat vector against another."""
    first, second = (torch.cat([side[name].flatten() for name in gradients]) for side in (gradients, against))
    dot = float(first @ second)
    factor = dot / float(second @ second) if dot < 0 else 0.0
    return {name: gradient - factor * against[name] for name, gradient in gradients.items()}


# --- analyses ------------------------------------------------------------------------------------------------


def layer_distance(displacements: Sequence[NDArray[np.float64]]) -> float:
    """||theta - theta_0||_2 from the displacement tensors themselves."""
    return math.sqrt(sum(float(value) ** 2 for tensor in displacements for value in tensor.reshape(-1)))


def u_statistic(gradients: Sequence[NDArray[np.float64]], tokens: Sequence[float]) -> float:
    """Unbiased |mu|^2: inner products of *different* blocks over the product of their tokens."""
    products = weights = 0.0
    for i, j in itertools.permutations(range(len(gradients)), 2):
        products += float(gradients[i] @ gradients[j])
        weights += tokens[i] * tokens[j]
    return products / weights


def u_cosine(
    safety: Sequence[NDArray[np.float64]],
    utility: Sequence[NDArray[np.float64]],
    safety_tokens: Sequence[float],
    utility_tokens: Sequence[float],
) -> float:
    """Cross product of the two token-mean gradients over the square root of the U-statistics."""
    safety_mean = np.sum(safety, axis=0) / sum(safety_tokens)
    utility_mean = np.sum(utility, axis=0) / sum(utility_tokens)
    norms = u_statistic(safety, safety_tokens) * u_statistic(utility, utility_tokens)
    return float(safety_mean @ utility_mean) / math.sqrt(norms)


def u_cosine_deviation(
    safety: Sequence[NDArray[np.float64]],
    utility: Sequence[NDArray[np.float64]],
    safety_tokens: Sequence[float],
    utility_tokens: Sequence[float],
) -> float:
    """Standard error by leaving out one block of one set at a time and recomputing everything."""

    def left_out(sequence: Sequence, index: int) -> list:
        return [item for position, item in enumerate(sequence) if position != index]

    variance = 0.0
    for which, blocks in (("safety", len(safety)), ("utility", len(utility))):
        values = [
            u_cosine(left_out(safety, i), utility, left_out(safety_tokens, i), utility_tokens)
            if which == "safety"
            else u_cosine(safety, left_out(utility, i), safety_tokens, left_out(utility_tokens, i))
            for i in range(blocks)
        ]
        mean = sum(values) / blocks
        variance += (blocks - 1) / blocks * sum((value - mean) ** 2 for value in values)
    return math.sqrt(variance)


def split_half_reliability(gradients: Sequence[NDArray[np.float64]]) -> float:
    """Mean cosine of the summed gradients of two halves, over all ways to halve the blocks."""
    blocks = range(len(gradients))
    found = []
    for half in itertools.combinations(blocks, len(gradients) // 2):
        first = sum(gradients[i] for i in half)
        second = sum(gradients[i] for i in blocks if i not in half)
        found.append(float(first @ second) / float(np.linalg.norm(first) * np.linalg.norm(second)))
    return sum(found) / len(found)


def effective_rank(matrix: NDArray[np.float64]) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli 2007)."""
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = [float(value) / float(values.sum()) for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def cumulative_energy(matrix: NDArray[np.float64], k: int) -> float:
    """Squared Frobenius norm of the best rank-k approximation over that of the matrix."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    nearest = (left[:, :k] * values[:k]) @ right[:k]
    return float(np.sum(nearest**2) / np.sum(matrix**2))


def pooled_gradients(
    gradients: Sequence[NDArray[np.float64]], tokens: Sequence[float], clusters: Sequence[object], by_token: bool
) -> tuple[list[NDArray[np.float64]], list[float]]:
    """Sums of gradients and of their weights by cluster: token sums and tokens, or example means and examples."""
    sums: dict[object, NDArray[np.float64]] = {}
    weights: dict[object, float] = {}
    for gradient, count, cluster in zip(gradients, tokens, clusters, strict=True):
        part = gradient if by_token else gradient / count
        sums[cluster] = sums.get(cluster, 0.0) + part
        weights[cluster] = weights.get(cluster, 0.0) + (count if by_token else 1.0)
    return list(sums.values()), list(weights.values())


def anchor_contrast_deviation(
    sets: Sequence[Sequence[NDArray[np.float64]]], tokens: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """cos(safety, utility) - cos(anchor, utility) and its jackknife error; sets in order safety, anchor, utility."""

    def difference(gradients: Sequence[Sequence[NDArray[np.float64]]], counts: Sequence[Sequence[float]]) -> float:
        return u_cosine(gradients[0], gradients[2], counts[0], counts[2]) - u_cosine(
            gradients[1], gradients[2], counts[1], counts[2]
        )

    variance = 0.0
    for which, members in enumerate(sets):
        values = []
        for left_out in range(len(members)):
            keep = [
                [index for index in range(len(one)) if position != which or index != left_out]
                for position, one in enumerate(sets)
            ]
            values.append(
                difference(
                    [[one[index] for index in rows] for one, rows in zip(sets, keep, strict=True)],
                    [[one[index] for index in rows] for one, rows in zip(tokens, keep, strict=True)],
                )
            )
        mean = sum(values) / len(values)
        variance += (len(values) - 1) / len(values) * sum((value - mean) ** 2 for value in values)
    return difference(sets, tokens), math.sqrt(variance)


def span_basis(gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal basis (dimension, rank) of the span of the rows, by Gram-Schmidt done twice."""
    columns: list[NDArray[np.float64]] = []
    for row in gradients:
        rest = row.copy()
        for _ in range(2):
            for column in columns:
                rest = rest - (column @ rest) * column
        if np.linalg.norm(rest) > 1e-8 * np.linalg.norm(row):
            columns.append(rest / np.linalg.norm(rest))
    return np.array(columns).T


def subspace_overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Mean squared length of the smaller basis' vectors after projection onto the other subspace."""
    small, large = sorted((first, second), key=lambda basis: basis.shape[1])
    projector = large @ large.T
    return sum(float(np.sum((projector @ column) ** 2)) for column in small.T) / small.shape[1]


def single_against_others(
    gradients: NDArray[np.float64], clusters: Sequence[object]
) -> list[tuple[float, float, float]]:
    """List, by gradient: share inside the others' span, share of their energy along it, cosine with their mean."""
    found = []
    for index, gradient in enumerate(gradients):
        others = np.array([one for one, label in zip(gradients, clusters, strict=True) if label != clusters[index]])
        basis, unit = span_basis(others), gradient / np.linalg.norm(gradient)
        mean = others.mean(axis=0)
        found.append((
            float(np.sum((basis.T @ unit) ** 2)),
            float(sum((one @ unit) ** 2 for one in others) / np.sum(others**2)),
            float(unit @ mean / np.linalg.norm(mean)),
        ))
    return found


def displacement_share(displacement: NDArray[np.float64], basis: NDArray[np.float64], k: int) -> float:
    """||P D||^2 / ||D||^2 with the projector P onto the first k columns."""
    projector = basis[:, :k] @ basis[:, :k].T
    return float(np.sum((projector @ displacement) ** 2) / np.sum(displacement**2))


def wilson(count: int, n: int, z: float) -> tuple[float, float]:
    """Solutions p of (count/n - p)^2 = z^2 p (1 - p) / n, the definition of the interval."""
    share = count / n
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def cluster_bootstrap(
    values: Sequence[float], clusters: Sequence[str], resamples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval: draw whole clusters, pool their values, take the mean."""
    groups: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    names, rng = sorted(groups), np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        pooled = [value for index in rng.integers(len(names), size=len(names)) for value in groups[names[index]]]
        means.append(sum(pooled) / len(pooled))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def seeded_cluster_bootstrap(
    values: Sequence[float], clusters: Sequence[str], resamples: int, seed: int
) -> tuple[float, float]:
    """The same, all clusters drawn at once from one generator: resamples in rows, clusters by name."""
    groups: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(float(value))
    names = sorted(groups)
    drawn = np.random.default_rng(seed).integers(0, len(names), size=(resamples, len(names)))
    means = []
    for row in drawn:
        pooled = [value for index in row for value in groups[names[index]]]
        means.append(math.fsum(pooled) / len(pooled))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def cluster_standard_error(values: Sequence[float], clusters: Sequence[str]) -> float:
    """Standard error of a mean from the residuals summed by cluster, with the factor G / (G - 1) (Miller 2411.00640).

    The double sum over all pairs of values of one cluster.
    """
    n, mean, groups = len(values), math.fsum(values) / len(values), len(set(clusters))
    total = math.fsum(
        (values[i] - mean) * (values[j] - mean) for i in range(n) for j in range(n) if clusters[i] == clusters[j]
    )
    return math.sqrt(groups / (groups - 1) * total) / n


def normal_quantile(share: float) -> float:
    """Where the standard normal distribution reaches a share, by bisection."""
    return _bisected(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)), share)


def t_quantile(share: float, freedom: int) -> float:
    """Where Student's distribution reaches a share above one half, by bisection on the incomplete beta function."""
    return _bisected(lambda t: 1 - 0.5 * float(betainc(freedom / 2, 0.5, freedom / (freedom + t * t))), share)


def _bisected(distribution: Callable[[float], float], share: float) -> float:
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if distribution(middle) < share else (low, middle)
    return (low + high) / 2


def closed_bonferroni(p_values: Sequence[float]) -> list[float]:
    """Adjusted p of each test by the closure principle: the largest Bonferroni p of all sets of tests that hold it."""
    tests = range(len(p_values))
    sets = [held for size in range(1, len(p_values) + 1) for held in itertools.combinations(tests, size)]
    return [
        max(min(1.0, len(held) * min(p_values[other] for other in held)) for held in sets if test in held)
        for test in tests
    ]


def cluster_sign_flip(differences: Sequence[float], clusters: Sequence[str]) -> float:
    """Exact two-sided p: flip the sign of every cluster's sum in all ways."""
    sums: dict[str, float] = {}
    for difference, cluster in zip(differences, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + difference
    observed = sum(sums.values())
    totals = [
        sum(sign * value for sign, value in zip(signs, sums.values(), strict=True))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    more = sum(total >= observed - 1e-12 for total in totals) / len(totals)
    less = sum(total <= observed + 1e-12 for total in totals) / len(totals)
    return min(1.0, 2 * min(more, less))


def stratified_auroc(checkpoints: Sequence[Any]) -> float:
    """Share of pairs (complied, did not) of one weight set in which the first has the higher risk; ties count half."""
    won, pairs = 0.0, 0
    for one in checkpoints:
        for risk, hit in zip(one.risk, one.complied, strict=True):
            for other, missed in zip(one.risk, one.complied, strict=True):
                if hit and not missed:
                    won, pairs = won + (risk > other) + 0.5 * (risk == other), pairs + 1
    return won / pairs


def kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Cohen's kappa: agreement beyond what the two judges' base rates give."""
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    p, q = sum(first) / n, sum(second) / n
    expected = p * q + (1 - p) * (1 - q)
    return (observed - expected) / (1 - expected)


# --- probes --------------------------------------------------------------------------------------------------


def slow_opening_log_prob(model: Any, prompt: Sequence[int], opening: Sequence[int]) -> float:
    """Log p(opening | prompt): one full forward pass for this pair alone, in float64."""
    slow = copy.deepcopy(model).double().eval()
    ids = [*prompt, *opening]
    with torch.no_grad():
        return float(sum(slow_target_log_probs(slow, ids, [-100] * len(prompt) + list(opening))))


def slow_refusal_margin(
    model: Any, prompt: Sequence[int], refusals: Sequence[Sequence[int]], compliance: Sequence[Sequence[int]]
) -> float:
    """Log of (probability that the answer begins like a refusal / like compliance)."""
    ours = sum(math.exp(slow_opening_log_prob(model, prompt, opening)) for opening in refusals)
    theirs = sum(math.exp(slow_opening_log_prob(model, prompt, opening)) for opening in compliance)
    return math.log(ours) - math.log(theirs)


def slow_refusal_log_odds(model: Any, prompt: Sequence[int], refusals: Sequence[Sequence[int]]) -> float:
    """Log-odds, with eps 1e-8, that the first token is the first token of a refusal."""
    p = sum(math.exp(slow_opening_log_prob(model, prompt, [first])) for first in {opening[0] for opening in refusals})
    return math.log(p + 1e-8) - math.log(1 - p + 1e-8)


def slow_gram(rows: Sequence[Tensor]) -> list[list[float]]:
    """Inner products from the definition, element by element products summed in float64."""
    return [[float((a.double() * b.double()).sum()) for b in rows] for a in rows]


# --- training --------------------------------------------------------------------------------------------------


def token_mean_gradients(model: Any, examples: Sequence[Any]) -> dict[str, Tensor]:
    """Gradient of the mean of -log p over all target tokens, one unpadded example at a time, in float64."""
    model.zero_grad()
    tokens = sum(label != -100 for example in examples for label in example.labels[1:])
    for example in examples:
        log_probs = slow_target_log_probs(model, example.input_ids, example.labels)
        (-torch.stack(log_probs).sum() / tokens).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# --- methods on weights ------------------------------------------------------------------------------------------


def moved_norm(weights: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """||theta - theta_0|| over all tensors, from the definition, in float64."""
    squares = [float(((weights[name].double() - start[name].double()) ** 2).sum()) for name in start]
    return math.sqrt(math.fsum(squares))


def on_the_ray(theta: dict[str, Tensor], start: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """theta_0 + factor (theta - theta_0), tensor by tensor."""
    return {name: start[name] + factor * (theta[name] - start[name]) for name in start}


def uniform_mean(path: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several weights: all added up, then divided."""
    return {name: sum(point[name] for point in path) / len(path) for name in path[0]}


def l2sp_by_hand(
    model: Any, batches: Sequence[Any], lr: float, strength: float, mode: str, kind: str = "adamw"
) -> dict[str, Tensor]:
    """Weights after one step a batch, the pull towards theta_0 written out; `batches` are loss functions.

    coupled: autograd of loss + strength / 2 ||theta - theta_0||^2. decoupled: the anchored average
    decay theta_0 + (1 - decay) theta with decay = lr strength, after the optimizer's step.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(weights.values(), lr=lr, weight_decay=0.0)
        if kind == "adamw"
        else torch.optim.SGD(weights.values(), lr=lr)
    )
    for loss_of in batches:
        optimizer.zero_grad()
        loss = loss_of(model)
        if mode == "coupled":
            loss = loss + strength / 2 * sum(((weights[name] - start[name]) ** 2).sum() for name in weights)
        loss.backward()
        optimizer.step()
        if mode == "decoupled":
            decay = lr * strength
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(decay * start[name] + (1 - decay) * weight)
    return {name: weight.detach().clone() for name, weight in weights.items()}


def one_shot_by_hand(model: Any, examples: Sequence[Any], epochs: int, lr: float) -> Any:
    """A copy of the model after full-batch Adam on the examples' token-mean loss, its formula written out."""
    patched = copy.deepcopy(model)
    weights = {name: weight for name, weight in patched.named_parameters() if weight.requires_grad}
    tokens = sum(label != -100 for _, labels in examples for label in labels[1:])
    mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    square = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(1, epochs + 1):
        found = slow_example_gradients(patched, examples, "sum")
        with torch.no_grad():
            for name, weight in weights.items():
                gradient = found[name].sum(dim=0) / tokens
                mean[name] = 0.9 * mean[name] + 0.1 * gradient
                square[name] = 0.999 * square[name] + 0.001 * gradient**2
                size = (square[name] / (1 - 0.999**step)).sqrt() + 1e-8
                weight -= lr * mean[name] / (1 - 0.9**step) / size
    return patched


def alignment_map(theta_0: Tensor, theta_base: Tensor, projector: str, rank: int | None = None) -> Tensor:
    """C (d_out, d_out), dense: V V^T / ||V||_F as released, or the projector V_k (V_k^T V_k)^+ V_k^T."""
    difference = theta_0.double() - theta_base.double()
    if projector == "released":
        return difference @ difference.T / math.sqrt(float((difference**2).sum()))
    if rank is not None:
        u, s, vt = torch.linalg.svd(difference)
        difference = u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]
    return difference @ torch.linalg.pinv(difference, rtol=1e-10)


def safe_lora_by_hand(
    theta: dict[str, Tensor], start: dict[str, Tensor], maps: dict[str, Tensor], threshold: float
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """theta_0 + C D where cos(C D, D) <= threshold, else theta; and the cosines. Weights are output side first."""
    found, cosines = {}, {}
    for name in theta:
        moved = (theta[name] - start[name]).double()
        found[name] = theta[name]
        if name in maps:
            kept = maps[name] @ moved
            cosines[name] = float((kept * moved).sum() / kept.norm() / moved.norm())
            if cosines[name] <= threshold:
                found[name] = start[name] + kept
    return found, cosines


def penalised_by_hand(
    model: Any,
    start: Any,
    steps: Sequence[Sequence[Sequence[Example]]],
    lr: float,
    *,
    kl: float = 0.0,
    penalty: Any = None,
    by_micro_batch: bool = False,
) -> None:
    """Train a float64 model in place: steps of micro-batches of examples, AdamW, one example at a time.

    A step's loss is the mean over all its target tokens of -log p + kl * sum_v p_0 (log p_0 - log p), plus
    `penalty(model)` once. `by_micro_batch`: the mean over micro-batches of their own token means instead.
    """
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=lr, weight_decay=0.0)
    for micro_batches in steps:
        optimizer.zero_grad()
        sums, counts = [], []
        for examples in micro_batches:
            total, count = torch.zeros((), dtype=torch.float64), 0
            for ids, labels in examples:
                log_probs = slow_target_log_probs(model, ids, labels)
                total = total - torch.stack(log_probs).sum()
                count += len(log_probs)
                if kl:
                    now = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                    with torch.no_grad():
                        then = start(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                    for position in range(1, len(ids)):
                        if labels[position] != -100:
                            old, new = then[position - 1], now[position - 1]
                            total = total + kl * sum(old.exp() * (old - new))
            sums.append(total)
            counts.append(count)
        loss = sum(sums) / sum(counts)
        if by_micro_batch:
            loss = sum(one / count for one, count in zip(sums, counts, strict=True)) / len(sums)
        if penalty is not None:
            loss = loss + penalty(model)
        loss.backward()
        optimizer.step()


def kl_by_position(
    start: Any, model: Any, ids: Sequence[int], labels: Sequence[int], first: int | None = None
) -> list[float]:
    """D(start || model) in nats before each target token of one unpadded sequence: a sum over the vocabulary."""
    with torch.no_grad():
        then = start(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()
        now = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    found = []
    for position in range(1, len(ids)):
        if labels[position] != -100:
            old, new = then[position - 1].softmax(-1).tolist(), now[position - 1].softmax(-1).tolist()
            found.append(math.fsum(p * (math.log(p) - math.log(q)) for p, q in zip(old, new, strict=True)))
    return found[:first]


def slow_streams(model: Any, ids: Sequence[int], positions: int) -> Tensor:
    """Residual stream of one prompt at its last positions: (layers + 1, positions, width), block by block by hand.

    transformers' own `output_hidden_states` gives the stream before each block; behind the last one it gives the normed
    one, so that entry is taken from the last block's own output.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept: list[Tensor] = []
    last = (base.base_model.h if hasattr(base.base_model, "h") else base.base_model.layers)[-1]
    handle = last.register_forward_hook(
        lambda _, __, output: kept.append(output if isinstance(output, Tensor) else output[0])
    )
    try:
        with torch.no_grad():
            hidden = model(
                input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False
            ).hidden_states
    finally:
        handle.remove()
    return torch.stack([stream[0, -positions:].double() for stream in (*hidden[:-1], kept[0])])


def orthogonalised(model: Any, direction: Tensor) -> Any:
    """A copy whose every weight that writes to the residual stream has lost a unit direction: W <- W - r r^T W."""
    copied = copy.deepcopy(model)
    r = direction / direction.norm()
    rows = ("wte.weight", "wpe.weight", "embed_tokens.weight")  # one row a token: the stream is the second axis
    outputs = ("o_proj", "down_proj", "c_proj")
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            transposed = name.endswith(rows) or (".c_proj.weight" in name)  # GPT-2's Conv1D keeps (in, out)
            if transposed:
                weight -= (weight @ r)[:, None] * r
            elif any(f".{part}." in name for part in outputs):
                weight -= (r[:, None] * (r @ weight)) if weight.dim() == 2 else r * (r @ weight)
    return copied
