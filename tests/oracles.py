"""Slow and plain statements of what the library does fast, and random trees to try both on."""

from collections.abc import Iterable
from itertools import permutations

import numpy as np
from hypothesis import strategies as st

from toy.tree import Node, features

PROBABILITIES = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)


@st.composite
def nodes(draw: st.DrawFn, max_nodes: int = 9, max_depth: int = 4, with_magnitudes: bool = False) -> Node:
    """A valid tree: exclusive or not, with nodes that are no features, probabilities of 0 and 1, columns permuted."""
    n = draw(st.integers(1, max_nodes))
    depth, children = [1], [[] for _ in range(n)]
    for i in range(1, n):
        parent = draw(st.sampled_from([j for j in range(i) if depth[j] < max_depth]))
        depth.append(depth[parent] + 1)
        children[parent].append(i)
    is_feature = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
    columns = draw(st.none() | st.permutations(range(sum(is_feature))))
    unused = iter(columns or ())

    def build(i: int, prob: float) -> Node:
        probs = [draw(PROBABILITIES) for _ in children[i]]
        exclusive = draw(st.booleans())
        if exclusive:
            probs = [p / max(1.0, sum(probs)) for p in probs]
        mean, std, scale = 1.0, 0.0, False
        if with_magnitudes:
            mean, std, scale = draw(st.tuples(st.floats(0.1, 10), st.sampled_from([0.0, 0.5]), st.booleans()))
        return Node(
            prob,
            tuple(build(child, p) for child, p in zip(children[i], probs, strict=True)),
            exclusive=exclusive,
            name=draw(st.none() | st.text(max_size=3)),
            is_feature=is_feature[i],
            feature_index=next(unused) if columns and is_feature[i] else None,
            magnitude_mean=mean,
            magnitude_std=std,
            scale_children_by_parent=scale,
        )

    return build(0, draw(PROBABILITIES))


def tree_states(root: Node) -> dict[frozenset[int], float]:
    """The probability of every set of features (their columns) that can be on together; no two sets are equal."""
    column = {id(node): i for i, node in enumerate(features(root))}

    def together(parts: Iterable[dict[frozenset[int], float]]) -> dict[frozenset[int], float]:
        states = {frozenset[int](): 1.0}
        for part in parts:
            states = _summed((a | b, p * q) for a, p in states.items() for b, q in part.items())
        return states

    def when_on(node: Node) -> dict[frozenset[int], float]:
        own = frozenset([column[id(node)]] if node.is_feature else [])
        if node.exclusive:
            none = 1 - sum(child.active_prob for child in node.children)
            below = _summed(
                [(frozenset(), none)]
                + [(s, child.active_prob * p) for child in node.children for s, p in when_on(child).items()]
            )
        else:
            below = together(free(child) for child in node.children)
        return {own | s: p for s, p in below.items()}

    def free(node: Node) -> dict[frozenset[int], float]:
        on = [(s, node.active_prob * p) for s, p in when_on(node).items()]
        return _summed([(frozenset(), 1 - node.active_prob), *on])

    return free(root)


def _summed(states: Iterable[tuple[frozenset[int], float]]) -> dict[frozenset[int], float]:
    total: dict[frozenset[int], float] = {}
    for state, p in states:
        if p > 0:
            total[state] = total.get(state, 0.0) + p
    return total


def within_binomial_bounds(
    count: np.ndarray | float, n: int, prob: np.ndarray | float, sigmas: float = 5
) -> np.ndarray:
    """Whether `count` of `n` draws is believable for a probability; a few counts of slack where it is tiny."""
    prob = np.asarray(prob)
    slack = np.where((prob > 0) & (prob < 1), sigmas, 1e-9 * n)
    return np.abs(np.asarray(count) - n * prob) <= sigmas * np.sqrt(n * prob * np.clip(1 - prob, 0, 1)) + slack


def slow_loss(
    arrays: dict[str, np.ndarray], weights: Iterable[tuple[int, float]], coef: float, sparsity: str
) -> tuple[float, dict[str, np.ndarray]]:
    """Σ w · (squared error + coef · penalty) over (length, weight) prefixes one by one, and its gradients by hand."""
    x, W_enc, b_enc, W_dec, b_dec = (arrays[name] for name in ("x", "W_enc", "b_enc", "W_dec", "b_dec"))
    n_rows = len(x)
    acts = np.maximum(x @ W_enc + b_enc, 0)
    norms = np.sqrt((W_dec**2).sum(axis=1))
    loss, d_acts, d_W_dec, d_b_dec, d_norms = 0.0, 0 * acts, 0 * W_dec, 0 * b_dec, 0 * norms
    for k, weight in weights:
        a, d = acts[:, :k], W_dec[:k]
        error = b_dec + a @ d - x
        size = a * norms[:k]
        penalty = size if sparsity == "l1" else np.log(size + 0.1) - np.log(0.1)
        slope = np.ones_like(size) if sparsity == "l1" else 1 / (size + 0.1)
        loss += weight * ((error**2).sum() + coef * penalty.sum()) / n_rows
        d_acts[:, :k] += weight * (2 * error @ d.T + coef * slope * norms[:k]) / n_rows
        d_W_dec[:k] += weight * 2 * a.T @ error / n_rows
        d_b_dec += weight * 2 * error.sum(axis=0) / n_rows
        d_norms[:k] += weight * coef * (slope * a).sum(axis=0) / n_rows
    d_W_dec += d_norms[:, None] * W_dec / norms[:, None]
    d_pre_acts = d_acts * (acts > 0)
    return float(loss), {
        "W_enc": x.T @ d_pre_acts,
        "b_enc": d_pre_acts.sum(axis=0),
        "W_dec": d_W_dec,
        "b_dec": d_b_dec,
    }


def random_arrays(seed: int, n_rows: int, d_in: int, n_latents: int) -> dict[str, np.ndarray]:
    """Inputs and SAE parameters in float64, with about half of the activations on."""
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (n_rows, d_in),
        "W_enc": (d_in, n_latents),
        "b_enc": (n_latents,),
        "W_dec": (n_latents, d_in),
        "b_dec": (d_in,),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def slow_inclusion(rates: np.ndarray, n_drawn: int) -> np.ndarray:
    """P(item among n_drawn drawn one by one without replacement ∝ rates), by listing every order of drawing."""
    probability = np.zeros(len(rates))
    for order in permutations(range(len(rates)), n_drawn):
        p, left = 1.0, rates.sum()
        for item in order:
            p, left = p * rates[item] / left, left - rates[item]
        probability[list(order)] += p
    return probability
