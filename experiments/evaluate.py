"""Any SAE against the truth: of this project, or a library that `read_sae` knows, on the features it was trained on.

Claim: none; it measures SAEs of yours.
Command: python -m experiments.evaluate --sae FOLDER… --tree TREE.json --directions W.npy (seconds). `W.npy` holds a row
for every feature, in the order of the tree; without --directions it is that of the seed in this project's experiments.
Expected: the metrics of SAELens' own evaluation, and what it lacks: recovery, holes of each edge, and mixing.
In the post: nothing; it has no ground truth of other SAEs.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment
from experiments.common.study import TreeConfig, check_features
from toy.checks import Whole, check_fields, quoted
from toy.eval.against_tree import evaluate
from toy.eval.classification import classification
from toy.features.node import Node, feature_names
from toy.features.tree import Tree, build_tree, edges, held_out_key, sample_features
from toy.features.tree_json import tree_from_dict
from toy.io import read_sae
from toy.sae import SAE, Activation, encode
from toy.training.loop import Progress

TABLE = {
    "recovered": "recovered",
    "hole_rate": "hole rate",
    "min_cosine": "least cosine",
    "mcc": "MCC",
    "uniqueness": "uniqueness",
    "max_off_diagonal": "mixing",
    "fvu": "FVU",
    "l0": "L0",
    "dead_latents": "dead",
    "shrinkage": "shrinkage",
    "f1_score": "F1",
}


@dataclass(frozen=True)
class Config(TreeConfig):
    """Options of `evaluate`."""

    own_out: ClassVar[Path] = Path("runs/evaluate")

    n_seeds: int = 1
    sae: tuple[Path, ...] = ()
    """Folders or files with an SAE each."""
    acts: tuple[Path, ...] = ()
    """NumPy files with activations of models that are no SAEs, [n_eval_rows n_latents], on the inputs of `held_out`."""
    directions: Path | None = None
    """NumPy file with the features' directions, [n_features d_in]."""
    bias: Path | None = None
    """NumPy file with a constant that is part of every input, [d_in]."""
    n_eval_rows: int = 20_000
    """Held-out rows that every SAE is measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, n_eval_rows=Whole(), n_seeds=Whole(most=1))

    @cached_property
    def W_feat(self) -> np.ndarray:  # noqa: N802
        """[n_features d_in]"""
        return self.study.W_feat[0] if self.directions is None else _array(self.directions)

    @cached_property
    def saes(self) -> dict[str, tuple[SAE, Activation]]:
        """The SAEs by path, as they were saved, and the activations with which they are used."""
        return {str(path): read_sae(path) for path in self.sae}


def held_out(
    root: Node,
    W_feat: Float[np.ndarray, "n_features d_in"],
    bias: Float[np.ndarray, " d_in"] | float = 0.0,
    *,
    seed: int = 0,
    n_rows: int = Config.n_eval_rows,
) -> Float[np.ndarray, "n_rows d_in"]:
    """The inputs that `evaluate` measures on: those to be encoded where it is given activations."""
    return _features(build_tree(root), seed, n_rows) @ W_feat + bias


def _features(tree: Tree, seed: int, n_rows: int) -> np.ndarray:
    return np.asarray(sample_features(held_out_key(jax.random.key(seed)), tree, n_rows))


def _array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{quoted(str(path))}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{quoted(str(path))}: holds several arrays; give an .npy file, which holds one")
    if array.dtype.kind != "f":
        raise ValueError(f"{quoted(str(path))}: expected floating-point numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{quoted(str(path))}: holds numbers that are not finite")
    return array.astype(np.float32)


def without_bias(sae: SAE, bias: np.ndarray) -> SAE:
    """The SAE that does on x what the given one does on x + bias."""
    return sae._replace(b_enc=sae.b_enc + bias @ sae.W_enc, b_dec=sae.b_dec - bias)


def check(cfg: Config) -> None:
    """Raises: ValueError naming the file that does not fit the tree, before any work."""
    tree = cfg.tree.tree
    if not cfg.sae and not cfg.acts:
        raise ValueError("sae: give at least one folder or file with an SAE, or activations by --acts")
    if cfg.directions is None:
        check_features(cfg, tree)
    n, shape = tree.n_features, cfg.W_feat.shape
    if len(shape) != 2 or shape[0] != n:
        raise ValueError(f"directions: {cfg.directions}: expected {n} rows, one for each feature, got shape {shape}")
    if cfg.bias is not None and _array(cfg.bias).shape != shape[1:]:
        raise ValueError(f"bias: {cfg.bias}: expected {shape[1]} numbers, got shape {_array(cfg.bias).shape}")
    for name, (sae, _) in cfg.saes.items():
        if sae.W_dec.shape[1] != shape[1]:
            raise ValueError(f"sae: {name}: has d_in = {sae.W_dec.shape[1]}, and the directions {shape[1]}")
    for path in cfg.acts:
        found = _array(path).shape
        if len(found) != 2 or found[0] != cfg.n_eval_rows:
            raise ValueError(f"acts: {path}: expected n_eval_rows = {cfg.n_eval_rows:,} rows, got shape {found}")


def n_steps(cfg: Config) -> int:
    return len(cfg.sae) + len(cfg.acts)


def run(cfg: Config, progress: Progress) -> dict[str, Any]:
    tree, W_feat = cfg.tree.tree, cfg.W_feat
    features = _features(tree, cfg.seed, cfg.n_eval_rows)
    x = features @ W_feat
    bias = np.zeros(W_feat.shape[1], np.float32) if cfg.bias is None else _array(cfg.bias)
    results = {}
    for name, (saved, activation) in cfg.saes.items():
        sae = without_bias(saved, bias)
        acts = np.asarray(encode(sae, jnp.asarray(x), activation))
        results[name] = _measured(sae, acts, features, tree, W_feat)
        progress(1)
    for path in cfg.acts:
        acts = _array(path)
        results[str(path)] = _measured(decoded_best(acts, x), acts, features, tree, W_feat)
        progress(1)
    return results


def decoded_best(acts: Float[np.ndarray, "rows n_latents"], x: Float[np.ndarray, "rows d_in"]) -> SAE:
    """An SAE with the decoder that best reconstructs inputs from activations, by least squares; its encoder is 0."""
    rows = np.column_stack([acts, np.ones(len(acts))]).astype(float)
    *W_dec, b_dec = np.linalg.lstsq(rows, x.astype(float), rcond=None)[0]
    n_latents, d_in = acts.shape[1], x.shape[1]
    return SAE(np.zeros((d_in, n_latents)), np.zeros(n_latents), np.array(W_dec), b_dec)  # type: ignore[arg-type]


def _measured(sae: SAE, acts: np.ndarray, features: np.ndarray, tree: Tree, W_feat: np.ndarray) -> dict[str, Any]:
    found = evaluate(sae, W_feat, tree, features, acts=acts)
    theirs = classification(acts, features > 0, np.asarray(sae.W_dec, float), np.asarray(W_feat, float))
    measured = found._asdict() | found.mixing._asdict() | theirs._asdict()
    return {key: value for key, value in measured.items() if key not in ("match", "mixing", "prefix_fvu")}


def summary(record: dict[str, Any]) -> list[str]:
    shown = TABLE | {"precision": "SAELens' precision", "recall": "recall"}
    return [
        f"{name}: " + ", ".join(f"{title} {_text(r[key])}" for key, title in shown.items())
        for name, r in record["results"].items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:.3g}"


def caption(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        f"a: measures on {config['n_eval_rows']:,} held-out rows; mixing: a latent's largest |cosine| with another "
        "feature's direction; F1: SAELens', a mean over latents; b: P(parent's latent off | child on)."
    )


def plot(record: dict[str, Any]) -> Figure:
    results, root = record["results"], tree_from_dict(record["config"]["tree"])
    names = [plots.shown_name("/".join(Path(name).parts[-2:]), 30) for name in results]
    feature, pairs = feature_names(root), edges(build_tree(root))
    height = 1.0 + 0.17 * len(names)
    with plots.styled(2 * height) as figure:
        top, bottom = plots.stacked(figure, 1, 1)
        text = [[_text(r[key]) for key in TABLE] for r in results.values()]
        shade = [[np.nan] * len(TABLE) for _ in results]
        plots.table(top.subplots(), "a  Measures", shade, text, names, list(TABLE.values()), high=1)
        ax = bottom.subplots()
        if not pairs:
            plots.nothing(ax, "no feature has a parent feature")
            return figure
        holes = [[np.nan if rate is None else rate for rate in r["hole_rates"]] for r in results.values()]
        shown = [["–" if np.isnan(rate) else f"{rate:.2f}" for rate in row] for row in holes]
        labels = [f"{plots.shown_name(feature[p], 8)}→{plots.shown_name(feature[c], 8)}" for p, c in pairs]
        plots.table(ax, "b  Hole rate per edge", holes, shown, names, labels, high=1)
    return figure


EXPERIMENT = Experiment("evaluate", Config, run, summary, plot, check, n_steps, caption)

if __name__ == "__main__":
    main(EXPERIMENT)
