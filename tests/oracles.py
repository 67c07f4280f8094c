"""Slow and plain statements of what the library does fast, and random trees to try both on."""

from collections.abc import Iterable
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from toy.features.node import Node, features
from toy.prefixes import FixedWeights, HybridWeights, Prefixes
from toy.sae import SAE, Activation, BatchTopK, ReLU

QUICK = {"xla_backend_optimization_level": 0}  # of what runs for milliseconds, most time is in compiling
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
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
    """Returns whether `count` of `n` draws is believable for a probability; a few counts of slack where it is tiny."""
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


def as_sae(arrays: dict[str, np.ndarray]) -> SAE:
    return SAE(**{name: jnp.asarray(arrays[name]) for name in PARAMETERS})


def dense_weights(prefixes: Prefixes, n_latents: int) -> np.ndarray:
    """The weight of each prefix length 1 … n_latents, whatever the type; repeated lengths add up."""
    if isinstance(prefixes, FixedWeights):
        return np.array(prefixes.weights)
    weights = np.zeros(n_latents)
    few = prefixes.tail if isinstance(prefixes, HybridWeights) else prefixes.weights
    if isinstance(prefixes, HybridWeights):
        weights[: len(prefixes.head)] = prefixes.head
    for length, weight in zip(np.asarray(prefixes.lengths), np.asarray(few), strict=True):
        weights[length - 1] += weight
    return weights


def naive_acts(sae: SAE, x: jax.Array, activation: Activation) -> jax.Array:
    """Activations in training, the largest found by sorting; differentiable."""
    acts = jnp.maximum(x @ sae.W_enc + sae.b_enc, 0)
    if isinstance(activation, ReLU):
        return acts
    sizes = jax.lax.stop_gradient(acts * jnp.sqrt(jnp.sum(sae.W_dec**2, axis=1)))
    if isinstance(activation, BatchTopK):
        least = jnp.sort(sizes, axis=None)[::-1][round(activation.k * len(x)) - 1]
    else:
        least = jnp.sort(sizes, axis=1)[:, ::-1][:, activation.k - 1 : activation.k]
    return acts * (sizes >= least)


def naive_mse(acts: jax.Array, W_dec: jax.Array, error: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_k w_k ‖error − Σ_{i < k} a_i d_i‖² by a cumulative sum over (batch, n_latents, d_in)."""
    residuals = error[:, None, :] - jnp.cumsum(acts[:, :, None] * W_dec, axis=1)
    return jnp.mean(jnp.sum(residuals**2, axis=2) @ weights)


def naive_loss(
    sae: SAE, x: jax.Array, weights: jax.Array, order: jax.Array, coef: jax.Array, sparsity: str, activation: Activation
) -> jax.Array:
    """The objective with a weight for each length; `order` is the latent at each rank. No penalty for TopK's family."""
    acts, W_dec = naive_acts(sae, x, activation)[:, order], sae.W_dec[order]
    mse = naive_mse(acts, W_dec, x - sae.b_dec, weights)
    if not isinstance(activation, ReLU):
        return mse
    size = acts * jnp.sqrt(jnp.sum(W_dec**2, axis=1))
    penalty = size if sparsity == "l1" else jnp.log(size + 0.1) - jnp.log(0.1)
    return mse + coef * jnp.mean(jnp.cumsum(penalty, axis=1) @ weights)


def tiny_model_state(rng: np.random.Generator, n_layers: int, d: int, *, vocab: int, context: int) -> dict[str, Any]:
    """Random weights under the names of noanabeshima/tiny_model; Linear weights are (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocab, d), "pos_embed": (1, context, d)}
    for i in range(n_layers):
        shapes |= {f"torso.{i}.attn.{name}.weight": (d, d) for name in "QKVO"}
        shapes |= {f"torso.{i}.attn.O.bias": (d,), f"torso.{i}.mlp.read_in.weight": (3 * d, d)}
        shapes |= {f"torso.{i}.mlp.read_in.bias": (3 * d,), f"torso.{i}.mlp.write_out.weight": (d, 3 * d)}
        shapes[f"torso.{i}.mlp.write_out.bias"] = (d,)
    shapes |= {"lm_head.weight": (vocab, d), "lm_head.bias": (vocab,)}
    return {name: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32) for name, shape in shapes.items()}


def slow_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, n_heads: int, scale: float, window: int) -> np.ndarray:
    """One sequence, a head and a position at a time; `window` counts the positions seen, their own the last."""
    out, d_head = np.zeros_like(v), v.shape[1] // n_heads
    for part in (slice(h * d_head, (h + 1) * d_head) for h in range(n_heads)):
        for i in range(len(q)):
            seen = range(max(0, i - window + 1), i + 1)
            weights = np.exp([scale * float(q[i, part] @ k[j, part]) for j in seen])
            out[i, part] = sum(w * v[j, part] for w, j in zip(weights / weights.sum(), seen, strict=True))
    return out


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def slow_tiny_model(state: dict[str, Any], tokens: np.ndarray, n_heads: int) -> dict[str, np.ndarray]:
    """Returns the activations of a tiny_model at every location, one sequence at a time, in float64."""
    w = {name: np.asarray(values, np.float64) for name, values in state.items()}
    d, n_layers = w["embed.weight"].shape[1], sum(name.endswith("attn.Q.weight") for name in w)
    out: dict[str, list[np.ndarray]] = {}
    for sequence in tokens:
        x = w["embed.weight"][sequence] + w["pos_embed"][0, : len(sequence)]
        for i in range(n_layers):
            attn, mlp = f"torso.{i}.attn", f"torso.{i}.mlp"
            q, k, v = (x @ w[f"{attn}.{name}.weight"].T for name in "QKV")
            heads = slow_attention(q, k, v, n_heads, (d // n_heads) ** -0.5, len(x))
            attn_out = heads @ w[f"{attn}.O.weight"].T + w[f"{attn}.O.bias"]
            mid = x + attn_out
            hidden = np.maximum(mid @ w[f"{mlp}.read_in.weight"].T + w[f"{mlp}.read_in.bias"], 0)
            mlp_out = hidden @ w[f"{mlp}.write_out.weight"].T + w[f"{mlp}.write_out.bias"]
            here = {"resid_pre": x, "attn_out": attn_out, "resid_mid": mid, "mlp_out": mlp_out}
            x = mid + mlp_out
            for name, values in (here | ({"resid_post": x} if i == n_layers - 1 else {})).items():
                out.setdefault(f"{name}.{i}", []).append(values)
        out.setdefault("logprobs", []).append(_log_softmax(x @ w["lm_head.weight"].T + w["lm_head.bias"]))
    return {f"out.{name}": np.stack(values) for name, values in out.items()}


def slow_llama(
    w: dict[str, np.ndarray], tokens: np.ndarray, *, n_heads: int, n_kv: int, theta: float, eps: float, adjoining: bool
) -> np.ndarray:
    """Log-probabilities of one sequence's next tokens, in float64.

    The weights are (out, in): embed, norm, head, and of layer i `i.attn_norm`, `i.q` and so on. `adjoining` says which
    numbers of a head turn as a pair: neighbours, or number i and number i + d_head / 2.
    """
    w = {name: np.asarray(values, np.float64) for name, values in w.items()}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return w[name] * x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps)

    def turned(x: np.ndarray) -> np.ndarray:
        """Each pair is a complex number, which is turned by an angle in proportion to the position."""
        half = x.shape[1] // 2
        pairs = (slice(0, None, 2), slice(1, None, 2)) if adjoining else (slice(0, half), slice(half, None))
        angles = np.outer(np.arange(len(x)), [theta ** (-2 * i / x.shape[1]) for i in range(half)])
        numbers, out = (x[:, pairs[0]] + 1j * x[:, pairs[1]]) * np.exp(1j * angles), np.empty_like(x)
        out[:, pairs[0]], out[:, pairs[1]] = numbers.real, numbers.imag
        return out

    x = w["embed"][tokens]
    for i in range(sum(name.endswith(".q") for name in w)):
        normed, heads = norm(f"{i}.attn_norm", x), []
        q, k, v = (normed @ w[f"{i}.{name}"].T for name in "qkv")
        d_head = q.shape[1] // n_heads
        for h in range(n_heads):
            own, shared = (slice(j * d_head, (j + 1) * d_head) for j in (h, h // (n_heads // n_kv)))
            heads.append(slow_attention(turned(q[:, own]), turned(k[:, shared]), v[:, shared], 1, d_head**-0.5, len(x)))
        x = x + np.concatenate(heads, axis=1) @ w[f"{i}.o"].T
        normed = norm(f"{i}.mlp_norm", x)
        gate = normed @ w[f"{i}.gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ w[f"{i}.up"].T)) @ w[f"{i}.down"].T
    return _log_softmax(norm("norm", x) @ w.get("head", w["embed"]).T)
