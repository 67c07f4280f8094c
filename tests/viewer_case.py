"""A small language model, its store and SAEs, for tests of the viewer: hostile stories, and SAEs that form a tree."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from toy.data.store import Store
from toy.io import write_sae
from toy.lm.corpus import make_stories
from toy.lm.export import export_activations
from toy.lm.model import LM, LMConfig, Site
from toy.lm.tokens import Tokenizer, make_rows, save_tokenizer, train_tokenizer
from toy.lm.weights import save_model
from toy.sae import SAE, init_sae

HOSTILE = (
    '</script><script>document.title = "owned"</script><img src=x onerror="document.title = 1"> &lt;b&gt; {{data}}'
)
SITE = "resid_pre.1"


class Case(NamedTuple):
    folder: Path
    store: Store
    tokenizer: Tokenizer
    saes: dict[str, SAE]


def make_case(folder: Path, n_stories: int = 40) -> Case:
    """Three reference SAEs of 4, 8 and 12 latents, each holding those before it, and a Matryoshka SAE of 16."""
    stories = [*make_stories(n_stories, 0), *[f"Lily said {HOSTILE} to Lily."] * 3]
    tokenizer = train_tokenizer(stories, 400)
    cfg = LMConfig(vocab_size=tokenizer.vocab_size, context=64, n_layers=2, d_model=16, n_heads=2)
    lm = LM(cfg, rngs=nnx.Rngs(0))
    save_tokenizer(folder / "model", tokenizer)
    save_model(folder / "model", lm)
    store = export_activations(
        folder / "store", lm, make_rows(stories, tokenizer, 64), [Site(1, "resid_pre")], facts={}, dtype="float32"
    )
    whole = init_sae(jax.random.key(0), 16, 16)
    whole = whole._replace(b_enc=jnp.full(16, -0.01), W_dec=whole.W_dec * 10)
    saes = {f"ref_{n}": SAE(whole.W_enc[:, :n], whole.b_enc[:n], whole.W_dec[:n], whole.b_dec) for n in (4, 8, 12)}
    saes["matryoshka"] = init_sae(jax.random.key(1), 16, 16)
    for name, sae in saes.items():
        training = {"weighting": "levels:4=1,full=1"} if name == "matryoshka" else {}
        write_sae(folder / name, sae, metadata={"training": training})
    return Case(folder, store, tokenizer, {name: jax.tree.map(np.asarray, sae) for name, sae in saes.items()})
