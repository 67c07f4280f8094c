"""The viewer's page in headless Chromium, opened from disk: what is shown, hovered, searched, linked and typed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from chromium import FOUND, Page
from scipy.sparse import csc_matrix
from viewer_case import HOSTILE, SITE, make_case

from experiments.viewer import relations
from experiments.viewer.activity import Activity, column_max, measure
from experiments.viewer.collect import Book, collect, packed, relate
from experiments.viewer.page import page
from experiments.viewer.runs import REFERENCE, Shown, Wanted, read_runs
from experiments.viewer.text import WINDOW, Source, Text, source_of
from toy.data.activations import Activations
from toy.lm.weights import load_model
from toy.sae import init_sae

pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOUND is None, reason="Chromium is not installed")]
HOLED = "S/1/2"  # a latent that is made to be silent at some tokens of its parent S/0/2


def with_holes(of: Activity) -> Activity:
    """S/1/2 silent wherever its activation is among the least of its own."""
    acts = of.acts.copy()
    part = slice(acts.indptr[2], acts.indptr[3])
    keep = acts.data[part] > np.quantile(acts.data[part], 0.4)
    acts.data[part] = np.where(keep, acts.data[part], 0)
    acts.eliminate_zeros()
    return of._replace(acts=acts)


def toy(name: str, steps: list[int | None]) -> dict[str, Any]:
    """A run on a tree of A with its child A1, and B: at the first step the parent is silent where the child is on."""
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) * 204
    holed = truth * np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1]])
    measured = {"latent": [2, 0, 1], "cosine": [1.0, 0.7, 1.0], "fvu": 0.5, "l0": 1.0}
    kept = [
        {"step": step, "holes": [0.0 if i else 1.0], "recovered": i > 0, "acts": packed(truth if i else holed, "u1")}
        for i, step in enumerate(steps)
    ]
    return {
        "name": name,
        "features": ["A", "A1", HOSTILE],
        "parent": [-1, 0, -1],
        "edges": [[0, 1]],
        "density": [0.2, 0.1, 0.05],
        "n_rows": 3,
        "seeds": [
            {"seed": seed, "truth": packed(truth, "u1"), "steps": [measured | one for one in kept]} for seed in (3, 4)
        ],
    }


class Made:
    """A page in a file, and what it was made of."""

    def __init__(self, folder: Path) -> None:
        case = make_case(folder)
        lm = load_model(folder / "model")
        self.source: Source = source_of(case.store, SITE, 10_000, case.tokenizer, lm)
        saes = read_runs([folder / name for name in case.saes], Wanted(SITE))
        activities = [measure(one, self.source) for one in saes]
        activities[1] = with_holes(activities[1])
        self.book: Book = relate(saes, activities, self.source.text.n_tokens)
        self.file = folder / "page.html"
        data = collect(self.source, self.book) | {"toys": [toy("whole", [100, 200, 300]), toy("short", [None])]}
        self.file.write_text(page(f"SAEs {HOSTILE}", data), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


@pytest.fixture
def tab(browser: Page, made: Made) -> Iterator[Page]:
    """The page; at the end nothing has gone wrong in it, and it has asked for nothing but itself."""
    browser.size(1200, 800)
    browser.errors.clear()
    browser.open(made.file)
    yield browser
    assert browser.errors == []
    assert {url.partition("#")[0] for url in browser.requests} == {made.file.absolute().as_uri()}


def drawn(tab: Page, fragment: str) -> None:
    """Goes to a hash of the page that is open, and waits until it is drawn."""
    tab.js(f"location.hash = {json.dumps(fragment)}")
    tab.js("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")


def shown_tokens(tab: Page, kind: str) -> list[int]:
    return tab.js(f"[...document.querySelectorAll('.contexts .token.{kind}')].map((one) => Number(one.dataset.place))")


def test_it_paints_at_once_and_text_stays_text(tab: Page, made: Made) -> None:
    assert tab.open(made.file) < 2_000
    assert tab.texts("h1") == [f"SAEs {HOSTILE}"]
    assert tab.js("document.title") == f"SAEs {HOSTILE}"
    assert tab.js("document.querySelectorAll('script').length") == 2
    drawn(tab, "#view=search&mode=text&q=onerror")
    assert tab.texts("#side .list a")
    tab.click("#side .list a")
    tab.wait("document.querySelector('.contexts .hit')")
    contexts = "".join(tab.texts(".contexts .context"))
    assert "onerror" in contexts
    tab.js("[...document.querySelectorAll('.context:has(.hit) .story')][0].click()")
    assert HOSTILE in tab.texts("blockquote")[0].replace("⟨unk⟩", "")
    assert tab.js("document.querySelectorAll('img').length") == 0
    assert tab.js("document.title") == f"SAEs {HOSTILE}"
    drawn(tab, "#id=<img src=x onerror=alert(1)>&over=<b>&q=<script>&view=<i>&mode=__proto__")
    assert tab.texts(".problem") == ["There is no latent <img src=x onerror=alert(1)>."]


def test_a_node_opens_and_leads_to_a_latents_page(tab: Page, made: Made) -> None:
    children = np.flatnonzero(made.book.trees[0].parent == 2)
    assert children.tolist() == [6]
    tab.js("document.querySelector('[data-node=\"2\"]').scrollIntoView()")
    tab.click('[data-node="2"] > .toggle')
    assert tab.texts('[data-node="2"] > ul > li > a b') == [HOLED]
    tab.click('[data-node="2"] > a')
    tab.wait("document.querySelector('article')")
    assert tab.js("location.hash") == "#id=S%2F0%2F2"
    of = made.book.activities[0]
    assert f"{100 * of.density[2]:.3g}% of tokens" in tab.texts(".facts")[0]
    assert f"{of.prefix_fvu[2]:.3g} of the latents up to this one" in tab.texts(".facts")[0]
    acts = of.acts.toarray()[:, 2].reshape(-1, WINDOW)
    windows = np.argsort(-acts.max(axis=1), kind="stable")[:10]
    slots, places = np.nonzero(acts[windows])
    on = [place for place in shown_tokens(tab, "on") if place < 10 * WINDOW]
    assert on == (slots * WINDOW + places).tolist()
    first = "".join(made.source.text.pieces[i] for i in made.source.text.tokens[windows[0]] if i >= 0)
    assert first in tab.texts(".context")[0]
    assert len(tab.texts("#effects li")) == 16
    bars = tab.texts(".histogram title")
    assert sum(int(bar.split()[0]) for bar in bars) == (acts > 0).sum()


def test_hovering_a_child_shows_its_holes(tab: Page, made: Made) -> None:
    drawn(tab, "#id=S/0/2")
    assert not shown_tokens(tab, "hole")
    parent, child = (made.book.activities[i].acts.toarray()[:, 2].reshape(-1, WINDOW) for i in (0, 1))
    windows = tab.js("contextsOf(2).map((context) => context.window)")
    tab.hover(".relation a.latent")
    assert tab.texts(".relation a.latent b")[0] == HOLED
    tab.wait("document.querySelector('.hole')")
    own, other = parent[windows].ravel() > 0, child[windows].ravel() > 0
    assert shown_tokens(tab, "hole") == np.flatnonzero(own & ~other).tolist()
    assert shown_tokens(tab, "both") == np.flatnonzero(own & other).tolist()
    n_both, n_holes = int((own & other).sum()), int((own & ~other).sum())
    assert n_holes > 0
    said = f"{HOLED} over S/0/2: on at {n_both} of its {n_both + n_holes} tokens here, silent at {n_holes} (dashed)"
    assert tab.texts("#over")[0].startswith(said)
    tab.hover(".contexts .token.both")
    value = parent[windows].ravel()[np.flatnonzero(own & other)[0]]
    assert (
        tab.texts("#status")[0].split("  ")[1]
        == f"S/0/2: {float(np.ceil(value / parent.max() * 255) / 255 * parent.max()):.3g}"
    )
    tab.wait("!document.querySelector('.hole')")  # the pointer has left the child
    tab.click(".relation .button")
    tab.wait("document.querySelector('.hole')")
    assert "over=S%2F1%2F2" in tab.js("location.hash")


def test_a_latent_stands_beside_its_match(tab: Page) -> None:
    drawn(tab, "#id=S/0/1&beside=S/2/1")
    assert tab.texts("article h2 a") == ["S/0/1", "S/2/1"]
    texts = tab.js("[...document.querySelectorAll('article')].map((one) => one.querySelector('.contexts').textContent)")
    assert texts[0] == texts[1]  # they are the same latent
    assert tab.texts(".relation .button")[-1] == "beside"


def test_searches_find_latents_and_mark_what_they_found(tab: Page, made: Made) -> None:
    tab.press("/")
    tab.write("lily")
    tab.press("Enter")
    tab.wait("location.hash.includes('q=lily') && document.querySelector('#found')")
    expected = tab.js(
        "Array.from({length: nLatents}, (_, id) => id).filter((id) => contextsOf(id).some(({window}) =>"
        "[...idsOf(window)].some((i) => pieceOf(i).trim().toLowerCase() === 'lily'))).length"
    )
    assert expected
    assert tab.texts("#found")[0].startswith(f"{expected} latents")
    tab.click("#side .list a")
    tab.wait("document.querySelector('.contexts .hit')")
    assert {text.strip().lower() for text in tab.texts(".contexts .hit")} == {"lily"}
    shares = [float(text.split("%")[0]) for text in tab.texts("#side .list small")]
    assert shares == sorted(shares, reverse=True)
    drawn(tab, "#view=search&mode=pattern&q=%40.%20lily&id=S/0/2")
    hits = shown_tokens(tab, "hit")
    on = set(shown_tokens(tab, "on"))
    assert hits
    assert all(place in on for place in hits[::2])


def found_in(tab: Page, pattern: str, pieces: list[str], acts: list[int] | None = None) -> list[list[int]]:
    """The matches of a pattern in a context of these pieces, which take the place of the page's."""
    return tab.js(
        f"(() => {{ const kept = DATA.pieces; DATA.pieces = {json.dumps(pieces)};"
        f"try {{ return matches(compilePattern({json.dumps(pattern)}), [...DATA.pieces.keys()], {json.dumps(acts)},"
        "{steps: 1e6, message: 'stopped'}); } finally { DATA.pieces = kept; } })()"
    )


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("lily", [[1, 2]]),
        ('" Lily"', [[1, 2]]),
        ('"Lily"', []),
        ("li~", [[1, 2]]),
        ("~d", [[2, 3], [3, 4]]),
        ("~and~", [[3, 4]]),
        (". .", [[0, 2], [2, 4], [4, 6]]),
        ("[lily sue]", [[1, 2], [4, 5]]),
        ("[^lily \\p]", [[0, 1], [2, 3], [3, 4], [4, 5]]),
        ("\\u+", [[0, 2], [4, 5]]),
        ("\\p", [[5, 6]]),
        ("\\d", []),
        ("\\s{2}", [[1, 3], [3, 5]]),
        ("lily .* sue", [[1, 5]]),
        ("lily (and | said)+ sue?", [[1, 5]]),
        ("lily said{0} and", []),
        (". {3,}", [[0, 6]]),
        ("x{2,4}", []),
        ("@lily", [[1, 2]]),
        ("!lily", []),
        ("@. !.", [[1, 3]]),
        ("!.+", [[0, 1], [2, 6]]),
        ("\\.", [[5, 6]]),
        ("a*", []),
        ("(a*)*", []),
        ("", []),
        ("once | sue", [[0, 1], [4, 5]]),
    ],
)
def test_patterns_of_tokens(tab: Page, pattern: str, expected: list[list[int]]) -> None:
    pieces, acts = ["Once", " Lily", " said", " and", " Sue", "."], [0, 9, 0, 0, 0, 0]
    assert found_in(tab, pattern, pieces, acts) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(lily", "a ( has no closing )"),
        ("lily)", "“)” at 5 stands where a token is expected"),
        ("[lily", "a class [ has no closing ]"),
        ('"lily', '“"” at 1 has no closing quote'),
        ("@(lily)", "@ and ! stand before a single token or a class"),
        ("* x", "“*” at 1 stands where a token is expected"),
        ("x{3,2}", "{3,2}: the second number is the larger one"),
        ("~", "~ needs text before or after it"),
        ("x{2001}", "the pattern is too long: it has more than 2000 parts"),
        ("x{999999}", "the pattern is too long: it has more than 2000 parts"),
        ("((x{50}){50}){50}", "the pattern is too long: it has more than 2000 parts"),
        ("(" * 50_000, "the pattern is nested too deeply"),
    ],
)
def test_a_pattern_that_cannot_be_read_has_a_message(tab: Page, pattern: str, message: str) -> None:
    assert tab.js(f"search('pattern', {json.dumps(pattern)})") == {"rows": [], "message": message}


def test_a_pattern_that_would_take_too_long_is_stopped(tab: Page) -> None:
    """Each is exponential for a program that tries one way after the other; here it takes steps by the square."""
    for pattern in ("((.*)*)* zebra", "(.?){60} zebra", "(. | . | .)* zebra"):
        assert tab.js(f"search('pattern', {json.dumps(pattern)}).message") == ""
    tab.js("mostSteps = 400000")
    drawn(tab, "#view=search&mode=pattern&q=(.?){60}")
    said = tab.texts(".problem")[0]
    assert said.startswith("stopped after 400,000 steps: make the pattern shorter (")
    tab.js("mostSteps = MOST_STEPS")


def test_a_link_opens_what_was_seen(tab: Page, made: Made) -> None:
    fragment = "#view=search&mode=pattern&q=%40lily&id=S%2F0%2F2&over=S%2F1%2F2"
    drawn(tab, fragment)
    seen = tab.js("document.body.innerText")
    tab.open(made.file, fragment)
    assert tab.js("document.body.innerText") == seen
    assert shown_tokens(tab, "hole")
    drawn(tab, "#id=S/0/1")
    tab.js("history.back()")
    tab.wait(f"location.hash === {json.dumps(fragment)} && document.querySelector('.hole')")
    assert tab.js("document.body.innerText") == seen


def test_keys_lead_through_the_page(tab: Page) -> None:
    tab.press("j")
    tab.wait("location.hash === '#id=S%2F0%2F0'")
    tab.press("j")
    tab.press("j")
    tab.press("k")
    tab.wait("location.hash === '#id=S%2F0%2F1'")
    focused = "document.activeElement.dataset.id"
    tab.press("ArrowDown")
    first = tab.js(focused)
    tab.press("ArrowRight")
    tab.press("ArrowDown")
    child = tab.js(focused)
    assert tab.js(f"treeView(0).parent[{child}]") == int(first)
    tab.press("ArrowLeft")
    assert tab.js(focused) == first
    tab.press("ArrowLeft")
    assert tab.js("document.querySelectorAll('ul.tree ul').length") == 0
    tab.press("Enter")
    tab.wait(f"shownLatent() === {first}")
    tab.press("l")
    tab.wait("document.querySelector('#side select[aria-label=order]')")
    tab.press("?")
    assert tab.js("document.getElementById('help').open")
    assert "whatever its case" in tab.texts("#help")[0]
    tab.press("Escape")
    tab.wait("!document.getElementById('help').open")
    drawn(tab, "#id=S/0/1&beside=S/2/1")
    tab.js("document.querySelector('.relation .button').focus()")
    tab.press("Enter")
    tab.wait("location.hash.includes('over=S%2F1%2F1')")
    tab.wait("document.activeElement.getAttribute('aria-pressed') === 'true'")  # it was drawn anew
    tab.press("Escape")
    tab.wait("location.hash === '#id=S%2F0%2F1'")


def shade(tab: Page, figure: int, row: int, feature: int) -> int:
    """The opacity of a cell of a map of the toy: 0 is the truth's, 1 that of the latents."""
    copy = "document.createElement('canvas').getContext('2d', {willReadFrequently: true})"
    source = f"document.querySelectorAll('canvas')[{figure}]"
    read = f"copy.getImageData({feature}, {row}, 1, 1).data[3]"
    return tab.js(f"(() => {{ const copy = {copy}; copy.drawImage({source}, 0, 0); return {read}; }})()")


def test_the_toy_has_a_slider_over_the_steps_of_each_seed(tab: Page) -> None:
    drawn(tab, "#view=toy")
    assert tab.texts("#toy-step") == ["step 300, the end"]
    assert "Recovered" in tab.texts("#toy")[0]
    assert [shade(tab, 1, 1, feature) for feature in (0, 1, 2)] == [204, 204, 0]
    tab.js("document.querySelector('input[type=range]').focus()")
    tab.press("ArrowLeft")
    tab.press("ArrowLeft")
    tab.wait("location.hash.includes('step=0')")
    assert tab.texts("#toy-step") == ["step 100"]
    assert "Not recovered" in tab.texts("#toy")[0]
    assert "parent silent 100%" in tab.texts(".toy-tree .toy-tree li")[0]
    assert [shade(tab, 1, 1, feature) for feature in (0, 1, 2)] == [0, 204, 0]
    assert shade(tab, 0, 1, 0) == 204
    assert HOSTILE in tab.texts(".toy-tree")[0]
    drawn(tab, "#view=toy&run=1&seed=4")
    assert tab.js("document.querySelector('input[type=range]').disabled")
    assert tab.js("document.getElementById('no-steps').offsetHeight") > 0
    assert tab.texts("#toy-step") == ["the end"]


def test_a_list_is_ordered_and_shows_more_on_demand(tab: Page, made: Made) -> None:
    drawn(tab, "#view=list&sae=S/2&order=density")
    density = made.book.activities[2].density
    assert tab.texts("#side .list b") == [f"S/2/{i}" for i in np.argsort(-density, kind="stable")]
    n = tab.js(
        "(() => { const box = rows(Array.from({length: 700}, (_, i) => i), String); document.body.append(box);"
        "box.querySelector('button').click(); const n = box.querySelectorAll('li').length; box.remove(); return n; })()"
    )
    assert n == 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark_and_fits_a_phone(tab: Page, scheme: str) -> None:
    tab.scheme(scheme)
    drawn(tab, "#id=S/0/2&over=S/1/2&beside=S/2/2")
    colours = tab.js(
        "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name].match(/\\d+/g)[0])"
    )
    assert (int(colours[0]) > int(colours[1])) == (scheme == "dark")
    assert abs(int(colours[0]) - int(colours[1])) > 150
    tab.size(360, 740)
    assert tab.js("document.documentElement.scrollWidth") <= 360
    tops = tab.js("[...document.querySelectorAll('article')].map((one) => one.getBoundingClientRect().left)")
    assert tops[0] == tops[1]  # one below the other


def test_edges_are_above_the_least_weight(tab: Page, made: Made) -> None:
    drawn(tab, "#tree=1")
    assert "4 latents stand" not in tab.texts("#side")[0]
    weights = [tree.weight[tree.parent >= 0] for tree in made.book.trees]
    assert min(weight.min() for weight in weights) > relations.LEAST_EDGE
    roots = tab.js("treeView(1).roots.filter((id) => treeView(1).below[id]).length")
    assert len(tab.texts("ul.tree > li")) == roots > 0


def bursts(rng: np.random.Generator, n_tokens: int, n_latents: int, l0: float) -> csc_matrix:
    """Activations of latents whose densities differ a hundredfold, and which are on for four tokens at a time."""
    density = 1 / np.linspace(1, 100, n_latents)
    counts = np.maximum(10, density / density.sum() * l0 * n_tokens / 4).astype(int)
    latent = np.repeat(np.arange(n_latents), counts * 4)
    place = (rng.integers(n_tokens - 4, size=counts.sum())[:, None] + np.arange(4)).ravel()
    found = csc_matrix((np.ones(len(place)), (place, latent)), shape=(n_tokens, n_latents))
    found.data = rng.exponential(size=found.nnz).astype(np.float32)
    return found


def test_four_thousand_latents_are_ten_megabytes_and_painted_in_two_seconds(browser: Page, tmp_path: Path) -> None:
    rng, n_tokens, widths = np.random.default_rng(0), 100_000 - 100_000 % WINDOW, (100, 300, 1_000, 2_600)
    saes = [Shown(f"S/{i}", REFERENCE, init_sae(jax.random.key(i), 8, width)) for i, width in enumerate(widths)]
    activities = []
    for one in saes:
        acts = bursts(rng, n_tokens, one.n_latents, 8)
        fvus, density = np.linspace(1, 0.2, one.n_latents), np.diff(acts.indptr) / n_tokens
        activities.append(Activity(acts, 0.2, fvus, 8.0, column_max(acts), density))
    pieces = [f" word{i}" for i in range(5_000)]
    text = Text(rng.integers(5_000, size=(n_tokens // WINDOW, WINDOW)), np.arange(n_tokens // WINDOW) % 8 > 0, pieces)
    matrix = Activations("x", (np.zeros((1, 8), np.float32),))
    source = Source(text, matrix, np.arange(n_tokens), np.arange(n_tokens), SITE, None)
    file = tmp_path / "large.html"
    file.write_text(page("large", collect(source, relate(saes, activities, n_tokens))), encoding="utf-8")
    assert file.stat().st_size < 10e6
    assert browser.open(file) < 2_000
    assert browser.js("nLatents") == 4_000
    assert browser.js("Math.min(...Array.from({length: nLatents}, (_, id) => contextsOf(id).length))") > 8
    drawn(browser, "#id=S/3/0")
    assert len(browser.texts(".context")) == 20
    browser.js("start = performance.now(); found = search('pattern', '@word~ .{1,3} !word~')")
    assert browser.js("found.message") == ""
    assert browser.js("performance.now() - start") < 10_000
