"""The language models: halves and taps fit together, positions see what they may, values are those of slow oracles."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import slow_attention, slow_tiny_model, tiny_model_state

from toy.lm.config import Family
from toy.lm.model import LM, LOCATIONS, LMConfig, Site, acts_at, keep, parse_site
from toy.lm.weights import gpt_neo_from, tiny_model_from

PARITY = Path(__file__).resolve().parents[2] / "shared" / "tinystories" / "tinymodel_parity.npz"
N_LAYERS = 3
SITES = tuple(Site(layer, location) for layer in range(N_LAYERS) for location in LOCATIONS)
each_family = pytest.mark.parametrize("family", ["tiny_model", "gpt_neo", "llama"])


def a_model(family: Family, **changes: Any) -> LM:
    """A model with large random parameters, so that every part of it matters; a llama's heads share keys and values."""
    changes = ({"n_kv_heads": 1} if family == "llama" else {}) | changes
    cfg = LMConfig(family=family, vocab_size=13, context=12, n_layers=N_LAYERS, d_model=8, n_heads=2, window=4)
    graph, state = nnx.split(LM(replace(cfg, **changes), rngs=nnx.Rngs(0)))
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(structure, drawn))


def some_tokens(n_positions: int = 10, n_rows: int = 2) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (n_rows, n_positions), 0, 13)


def splice(at: Site, change: Callable[[jax.Array], jax.Array]) -> Callable[[Site, jax.Array], jax.Array]:
    return lambda site, acts: change(acts) if site == at else acts


@each_family
def test_the_two_halves_make_the_model_whatever_the_layer(family: Family) -> None:
    lm, tokens = a_model(family), some_tokens()
    logits = lm(tokens)
    assert logits.shape == (2, 10, 13)
    assert logits.dtype == jnp.float32
    for layer in range(N_LAYERS + 1):
        np.testing.assert_array_equal(lm.logits_from(lm.resid_at(tokens, layer), layer), logits)
    for layer in (-1, N_LAYERS + 1):
        with pytest.raises(ValueError, match="layer: must be between 0 and 3"):
            lm.resid_at(tokens, layer)
        with pytest.raises(ValueError, match="layer: must be between 0 and 3"):
            lm.logits_from(jnp.zeros((1, 2, 8)), layer)


@each_family
def test_activations_of_sites_are_what_the_taps_see_and_add_up(family: Family) -> None:
    lm, tokens, seen = a_model(family), some_tokens(), {}

    def note(site: Site, acts: jax.Array) -> jax.Array:
        seen[site] = acts
        return acts

    lm(tokens, note)
    assert set(seen) == set(SITES)
    found = acts_at(lm, tokens, SITES)
    assert tuple(found) == SITES
    for site in SITES:
        np.testing.assert_array_equal(found[site], seen[site])
    for layer in range(N_LAYERS):
        pre, attn, mid, mlp = (found[Site(layer, location)] for location in LOCATIONS)
        np.testing.assert_array_equal(pre, lm.resid_at(tokens, layer))
        np.testing.assert_allclose(mid, pre + attn, rtol=1e-6)
        np.testing.assert_allclose(lm.resid_at(tokens, layer + 1), mid + mlp, rtol=1e-6)


def test_reading_sites_runs_no_layer_above_the_last_of_them() -> None:
    lm, tokens = a_model("gpt_neo"), some_tokens()
    whole = acts_at(lm, tokens, SITES)
    lm.blocks[2] = cast(Any, lm.embed)  # not a block: it cannot run
    for last in SITES[:9]:  # resid_pre of that layer included
        found = acts_at(lm, tokens, (SITES[2], last))
        assert set(found) == {SITES[2], last}
        np.testing.assert_array_equal(found[last], whole[last])
    assert acts_at(lm, tokens, ()) == {}
    with pytest.raises(ValueError, match=r"resid_pre\.3"):
        acts_at(lm, tokens, (Site(3, "resid_pre"),))


@pytest.mark.slow
@each_family
def test_splicing_a_value_itself_changes_nothing_and_another_changes_no_earlier_position(family: Family) -> None:
    lm, tokens = a_model(family), some_tokens()
    logits, acts = lm(tokens), acts_at(lm, tokens, SITES)
    forward = jax.jit(lambda tokens, values, layer: lm(tokens, splice(layer, lambda _: values)), static_argnums=2)
    for site in SITES:
        np.testing.assert_allclose(forward(tokens, acts[site], site), logits, rtol=1e-4, atol=1e-4)
        changed = acts[site].at[:, 4, 0].add(1)  # layer norm takes no notice where a whole row is moved
        spliced = forward(tokens, changed, site)
        np.testing.assert_allclose(spliced[:, :4], logits[:, :4], rtol=1e-4, atol=1e-4)
        assert (jnp.abs(spliced[:, 4] - logits[:, 4]).max(axis=1) > 0.01).all()
        later = jnp.abs(spliced[:, 5:] - logits[:, 5:]).max() > 0.01
        assert later == (site not in (Site(2, "resid_mid"), Site(2, "mlp_out"), Site(2, "attn_out")))


@each_family
@pytest.mark.parametrize("location", LOCATIONS)
def test_what_follows_a_spliced_value_is_computed_from_it(family: Family, location: str) -> None:
    lm, tokens, seen = a_model(family), some_tokens(), {}
    clean = acts_at(lm, tokens, SITES)

    def tap(site: Site, acts: jax.Array) -> jax.Array:
        seen[site] = acts + 1 if site == Site(1, location) else acts
        return seen[site]

    lm(tokens, tap)
    pre, attn, mid, mlp = (seen[Site(1, name)] for name in LOCATIONS)
    np.testing.assert_array_equal(pre + attn if location != "resid_mid" else clean[Site(1, "resid_mid")] + 1, mid)
    np.testing.assert_allclose(seen[Site(2, "resid_pre")], mid + mlp, rtol=1e-6)
    for site in SITES[: SITES.index(Site(1, location))]:
        np.testing.assert_array_equal(seen[site], clean[site])


def influence(lm: LM, tokens: jax.Array) -> np.ndarray:
    """Entry (i, j): the size of the derivative of position i's logits by the embedding at position j."""

    def logits(resid: jax.Array) -> jax.Array:
        return lm.logits_from(resid, 0)[0]

    return np.asarray(jnp.abs(jax.jacobian(logits)(lm.resid_at(tokens, 0))[:, :, 0]).sum(axis=(1, 3)))


@each_family
def test_a_position_is_influenced_by_itself_and_those_before_alone(family: Family) -> None:
    sizes = influence(a_model(family), some_tokens(n_rows=1))
    np.testing.assert_array_equal(sizes > 0, np.tri(10, dtype=bool))


@pytest.mark.parametrize("window", [1, 4, 10, 300])
def test_a_local_layer_sees_its_window_and_a_global_one_everything_before(window: int) -> None:
    lm, tokens = a_model("gpt_neo", n_layers=1, attention=("local",), window=window), some_tokens(n_rows=1)
    distance = np.arange(10)[:, None] - np.arange(10)
    np.testing.assert_array_equal(influence(lm, tokens) > 0, (distance >= 0) & (distance < window))
    everything = influence(a_model("gpt_neo", n_layers=1, window=window), tokens)
    np.testing.assert_array_equal(everything > 0, distance >= 0)


def test_layers_are_global_and_local_in_turn_where_nothing_else_is_said() -> None:
    cfg = a_model("gpt_neo").cfg
    assert cfg.windows == (None, 4, None)
    assert replace(cfg, attention=("local", "local", "global")).windows == (4, 4, None)
    assert replace(cfg, family="tiny_model").windows == (None, None, None)
    assert (cfg.n_hidden, replace(cfg, d_mlp=5).n_hidden) == (32, 5)


def gpt_neo_state(rng: np.random.Generator, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random weights under the names of Transformers."""
    d, d_mlp, linear = config["hidden_size"], config["intermediate_size"], {}
    for i in range(config["num_layers"]):
        layer = f"transformer.h.{i}"
        linear |= {f"{layer}.attn.attention.{name}_proj.weight": (d, d) for name in ("q", "k", "v", "out")}
        linear |= {f"{layer}.mlp.c_fc.weight": (d_mlp, d), f"{layer}.mlp.c_proj.weight": (d, d_mlp)}
        linear |= {f"{layer}.mlp.c_fc.bias": (d_mlp,), f"{layer}.mlp.c_proj.bias": (d,)}
        linear |= {f"{layer}.attn.attention.out_proj.bias": (d,)}
        linear |= {f"{layer}.{norm}.{part}": (d,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    linear |= {"transformer.wte.weight": (config["vocab_size"], d), "transformer.ln_f.weight": (d,)}
    linear |= {"transformer.wpe.weight": (config["max_position_embeddings"], d), "transformer.ln_f.bias": (d,)}
    return {name: (rng.normal(size=shape) / 2).astype(np.float32) for name, shape in linear.items()}


CONFIG = {
    "vocab_size": 13,
    "max_position_embeddings": 12,
    "num_layers": 3,
    "hidden_size": 8,
    "num_heads": 2,
    "intermediate_size": 20,
    "window_size": 3,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
    "layer_norm_epsilon": 1e-3,
}


def slow_gpt_neo(state: dict[str, np.ndarray], config: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Logits, one sequence at a time, in float64; layers are global, local, local."""
    w = {name.removeprefix("transformer."): np.asarray(values, np.float64) for name, values in state.items()}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + config["layer_norm_epsilon"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    logits = []
    for sequence in tokens:
        x = w["wte.weight"][sequence] + w["wpe.weight"][: len(sequence)]
        for i, window in enumerate((len(sequence), config["window_size"], config["window_size"])):
            normed = norm(f"h.{i}.ln_1", x)
            q, k, v = (normed @ w[f"h.{i}.attn.attention.{name}_proj.weight"].T for name in "qkv")
            heads = slow_attention(q, k, v, config["num_heads"], 1.0, window)
            out = f"h.{i}.attn.attention.out_proj"
            x = x + heads @ w[f"{out}.weight"].T + w[f"{out}.bias"]
            h = norm(f"h.{i}.ln_2", x) @ w[f"h.{i}.mlp.c_fc.weight"].T + w[f"h.{i}.mlp.c_fc.bias"]
            h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            x = x + h @ w[f"h.{i}.mlp.c_proj.weight"].T + w[f"h.{i}.mlp.c_proj.bias"]
        logits.append(norm("ln_f", x) @ w["wte.weight"].T)
    return np.stack(logits)


def test_gpt_neo_gives_what_a_slow_oracle_gives() -> None:
    state, tokens = gpt_neo_state(np.random.default_rng(0), CONFIG), some_tokens()
    lm = gpt_neo_from(state, CONFIG)
    np.testing.assert_allclose(lm(tokens), slow_gpt_neo(state, CONFIG, np.asarray(tokens)), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("default")  # theirs are not ours to mend
def test_gpt_neo_gives_what_transformers_gives() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.GPTNeoConfig(**CONFIG)
    theirs = transformers.GPTNeoForCausalLM(config).eval()
    state = gpt_neo_state(np.random.default_rng(0), CONFIG)
    theirs.load_state_dict({name: torch.tensor(values) for name, values in state.items()}, strict=False)
    tokens = some_tokens()
    with torch.no_grad():
        logits = theirs(torch.tensor(np.asarray(tokens))).logits.numpy()
    saved = {name: values.numpy() for name, values in theirs.state_dict().items()}  # buffers and lm_head, too
    lm = gpt_neo_from(saved, config.to_dict())
    np.testing.assert_allclose(lm(tokens), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("in_float64", [False, True])
def test_tiny_model_gives_what_a_slow_oracle_gives_at_every_location(in_float64: bool) -> None:
    rng = np.random.default_rng(0)
    state, tokens = tiny_model_state(rng, 2, 12, vocab=13, context=12), some_tokens()
    expected = slow_tiny_model(state, np.asarray(tokens), 3)
    with jax.enable_x64(in_float64):
        lm = tiny_model_from(state, 3)
        found = acts_at(lm, tokens, SITES[:8])
        assert {acts.dtype for acts in found.values()} == {jnp.dtype("float32")}
        for site, acts in found.items():
            np.testing.assert_allclose(acts, expected[f"out.{site}"], rtol=0, atol=1e-5)
        logprobs = jax.nn.log_softmax(lm(tokens))
    np.testing.assert_allclose(logprobs, expected["out.logprobs"], rtol=0, atol=1e-5)


@pytest.mark.skipif(not PARITY.exists(), reason="the reference file is not beside this checkout")
def test_tiny_model_gives_what_the_original_modules_gave_at_every_location() -> None:
    with np.load(PARITY) as file:
        data = dict(file)
    state = {name: values for name, values in data.items() if name != "tok_ids" and not name.startswith("out.")}
    lm, tokens = tiny_model_from(state, 4), jnp.asarray(data["tok_ids"])
    for site, acts in acts_at(lm, tokens, SITES[:8]).items():
        np.testing.assert_allclose(acts, data[f"out.{site}"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(lm.resid_at(tokens, 2), data["out.resid_post.1"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(jax.nn.log_softmax(lm(tokens)), data["out.logprobs"], rtol=0, atol=1e-4)


@each_family
def test_models_of_one_configuration_share_one_compiled_program_and_survive_split_and_merge(family: Family) -> None:
    n_traced = 0

    @nnx.jit
    def forward(lm: LM, tokens: jax.Array) -> jax.Array:
        nonlocal n_traced
        n_traced += 1
        return lm(tokens)

    cfg, tokens = a_model(family).cfg, some_tokens()
    models = [LM(cfg, rngs=nnx.Rngs(seed)) for seed in range(2)]
    first, second = (np.asarray(forward(lm, tokens)) for lm in models)
    assert n_traced == 1
    assert np.abs(first - second).max() > 1e-3
    graph, _ = nnx.split(models[0])
    merged = nnx.merge(graph, nnx.state(models[1]))  # one's structure with the other's values
    np.testing.assert_array_equal(forward(merged, tokens), second)


@each_family
def test_sites_are_read_under_jit(family: Family) -> None:
    lm, tokens = a_model(family), some_tokens()
    found = nnx.jit(acts_at, static_argnames="sites")(lm, tokens, sites=SITES[2:5])
    for site, acts in acts_at(lm, tokens, SITES[2:5]).items():
        np.testing.assert_allclose(found[site], acts, rtol=1e-4, atol=1e-5)


@each_family
def test_a_new_model_starts_near_the_uniform_guess_with_weights_of_the_stated_sizes(family: Family) -> None:
    cfg = LMConfig(family=family, vocab_size=100, context=50, n_layers=2, d_model=64, n_heads=4)
    lm = LM(cfg, rngs=nnx.Rngs(0))
    block = lm.blocks[1]
    sizes = {
        "embed": (lm.embed.embedding, 0.02),
        "pos_embed": (lm.embed.embedding if lm.pos_embed is None else lm.pos_embed, 0.02),
        "Q": (block.attn.Q.kernel, 1 / 32 if family == "gpt_neo" else 1 / 8),
        "K": (block.attn.K.kernel, 1 / 8),
        "O": (block.attn.O.kernel, 1 / 16),
        "read_in": (block.mlp.read_in.kernel, 1 / 8),
        "write_out": (block.mlp.write_out.kernel, 1 / 32),
    }
    for name, (values, size) in sizes.items():
        assert float(values[...].std()) == pytest.approx(size, rel=0.05), name
    loss = -jax.nn.log_softmax(lm(jax.random.randint(jax.random.key(0), (4, 50), 0, 100))).mean()
    assert float(loss) == pytest.approx(np.log(100), rel=0.05)


def test_tokens_beyond_the_context_are_refused_and_unknown_ones_give_no_number() -> None:
    lm = a_model("tiny_model")
    with pytest.raises(ValueError, match="13 positions are more than the context of 12"):
        lm(some_tokens(13))
    assert jnp.isnan(lm(jnp.array([[1, 13]]))[0, 1]).all()
    assert not jnp.isnan(lm(jnp.array([[1, 12]]))).any()


def test_sites_have_names() -> None:
    assert [parse_site(str(site), N_LAYERS) for site in SITES] == list(SITES)
    assert parse_site("attn_out.1", 2) == Site(1, "attn_out")
    for text in ("attn_out.3", "attn_out.-1", "attn_out", "attn.1", "resid_post.0", "1.attn_out", ""):
        with pytest.raises(ValueError, match=f"site: {text!r} is not one of resid_pre, .* 0 to 2"):
            parse_site(text, 3)
    acts = jnp.ones((1, 1, 1))
    assert keep(SITES[0], acts) is acts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers: must be at least 1, got 0"),
        ({"window": 0}, "window: must be"),
        ({"d_mlp": 0}, "d_mlp: must be"),
        ({"n_heads": 3}, "n_heads: must divide d_model = 8, got 3"),
        ({"norm_eps": 0.0}, "norm_eps: must be above 0"),
        ({"attention": ("global",)}, "attention: must be global or local for each of 3 layers"),
        ({"attention": ("global",) * 3, "n_layers": 2}, "attention: must be"),
        ({"family": "tiny_model", "attention": ("global", "local", "global")}, "tiny_model has no local layers"),
        ({"family": "llama", "attention": ("global", "local", "global")}, "llama has no local layers"),
        ({"family": "llama", "n_kv_heads": 4}, "n_kv_heads: must divide n_heads = 2, got 4"),
        ({"family": "llama", "d_head": 3}, "d_head: must be even for rotary positions, got 3"),
        ({"family": "llama", "rope_theta": 0.0}, "rope_theta: must be above 0"),
        ({"n_kv_heads": 1}, "n_kv_heads, d_head: gpt_neo has none"),
        ({"d_head": 4}, "n_kv_heads, d_head: gpt_neo has none"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(a_model("gpt_neo").cfg, **changes)
