"""First letters on prompts and SAEs made by hand: what is read where, which latents are main, and what is absorbed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import minimize

from toy.lm import first_letter, letter_absorption
from toy.lm.corpus import make_stories
from toy.lm.export import forward_to
from toy.lm.first_letter import NO_LETTER, Task, acts_at_words, f1_scores, fit_letter_probes, known_words, make_task
from toy.lm.letter_absorption import _found, _l1_weights, absorbed, measure_letters, n_main
from toy.lm.model import LM, LMConfig, Site
from toy.lm.tokens import Tokenizer, train_tokenizer
from toy.sae import SAE

D = 6  # direction 0 is the letter's, 1 to 4 those of words
EYE = np.eye(D, dtype=np.float32)
NOTHING = np.zeros(D, np.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(make_stories(300, 0), 640)


@pytest.fixture
def task(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(first_letter, "MIN_WORDS", 2)
    return make_task(tokenizer, 100, 8, seed=1)


def test_prompts_show_other_words_with_their_letters_and_end_in_their_own(tokenizer: Tokenizer, task: Task) -> None:
    known = known_words(tokenizer)
    assert {*task.words} < {*known}
    assert all(word[0] == " " and len(word) > 2 and word.strip().isalpha() for word in known)
    for word, ids, length in zip(task.words, task.prompts.ids, task.prompts.length, strict=True):
        *examples, last = tokenizer.decode(ids[:length]).split("\n")[1:]
        assert last == word
        assert len(examples) == 8
        for example in examples:
            other, letter = example.split(" has the first letter: ")
            assert other in task.words
            assert other != word
            assert letter == other[1].upper()


def test_letters_count_with_enough_words_to_test_on(task: Task) -> None:
    tested = [word[1].lower() for word, is_test in zip(task.words, task.is_test, strict=True) if is_test]
    assert len(tested) == 20
    assert set(task.letters) == {c for c in tested if tested.count(c) >= 2}
    for word, letter, present in zip(task.words, task.letter, task.present(), strict=True):
        assert letter == (task.letters.index(word[1].lower()) if word[1].lower() in task.letters else NO_LETTER)
        assert present.sum() == (letter >= 0)


def test_too_few_words_of_a_letter_or_of_the_tokenizer_are_told_of(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="fewer than 5,000"):
        make_task(tokenizer, 5_000)
    with pytest.raises(ValueError, match="no letter begins 10"):
        make_task(tokenizer, 20)


def test_activations_are_those_of_the_words_token_from_the_layers_below_alone(tokenizer: Tokenizer, task: Task) -> None:
    cfg = LMConfig(vocab_size=tokenizer.vocab_size, context=256, n_layers=3, d_model=8, n_heads=2)
    lm = LM(cfg, rngs=nnx.Rngs(0))
    for block in lm.blocks[1:]:
        nnx.update(block, jax.tree.map(lambda x: x * jnp.nan, nnx.state(block, nnx.Param)))  # whoever runs it has NaN
    site = Site(1, "resid_pre")
    found = acts_at_words(forward_to(lm, [site]), task.prompts)[str(site)]
    assert np.isfinite(found).all()
    for i in (0, 31, 32, 99):  # in several batches
        alone = task.prompts.ids[i, : task.prompts.length[i] - 1]
        assert tokenizer.decode(alone).endswith(task.words[i])
        np.testing.assert_allclose(found[i], lm.resid_at(jnp.asarray(alone[None]), 1)[0, -1], rtol=1e-4, atol=1e-6)


def words_of(letter: np.ndarray, n_letters: int) -> Task:
    """A task with these letters, every fourth word of which is tested on."""
    n = len(letter)
    return Task(("",) * n, tuple("abcdef"[:n_letters]), letter, np.arange(n) % 4 == 0, None)  # type: ignore[arg-type]


def test_probes_find_the_directions_of_letters() -> None:
    rng = np.random.default_rng(0)
    letter = rng.integers(-1, 3, 400)
    x = 3 * EYE[letter] * (letter >= 0)[:, None] + 0.3 * rng.standard_normal((400, D)) + 5
    task = words_of(letter, 3)
    probes = fit_letter_probes(x.astype(np.float32), task)
    assert probes.accuracy == 1
    assert (probes.f1 == 1).all()
    assert (probes.directions[:3].argmax(axis=0) == [0, 1, 2]).all()
    tested = letter[task.is_test]
    assert (probes.correct(tested) == (tested >= 0)).all()


def test_f1_is_twice_the_hits_over_what_is_present_and_what_is_found() -> None:
    present = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]], bool)
    found = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    assert f1_scores(present, found).tolist() == [2 / 3, 0, 0]


@pytest.mark.parametrize(
    ("f1", "n"), [([0.5, 0.52, 0.9], 1), ([0.5, 0.6, 0.62, 0.9], 2), ([0.1, 0.2, 0.3], 3), ([0.0], 1)]
)
def test_latents_are_main_while_each_raises_the_f1(f1: list[float], n: int) -> None:
    assert n_main(np.array(f1)) == n


def test_the_regression_that_ranks_latents_is_penalised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letter_absorption, "L1", 0.1)
    present = np.arange(40)[:, None] % 4 == 0  # a latent that is on with the letter, and one that tells nothing
    acts = np.concatenate([present, np.arange(40)[:, None] // 4 % 2], axis=1)
    signs, weights = np.where(present, 1.0, -1.0), np.where(present, 0.05, 1 / 60)
    found = _l1_weights(*(jnp.asarray(values, jnp.float32) for values in (acts, signs, weights)))
    # The loss is log(1 + exp(−w / 2)) + .1 w, as the bias is −w / 2.
    np.testing.assert_allclose(found[:, 0], [2 * np.log(4), 0], rtol=0.05, atol=0.01)


def test_the_regression_on_a_few_latents_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    few, tests = np.abs(rng.standard_normal((12, 3))), np.abs(rng.standard_normal((2_000, 3)))
    signs = np.where(few[:, 0] + 0.5 * rng.standard_normal(12) > 1, 1.0, -1.0)
    weights = np.where(signs > 0, 0.5 / (signs > 0).sum(), 0.5 / (signs < 0).sum())
    used = np.array([True, True, False])

    def loss(w: np.ndarray) -> float:
        losses = np.logaddexp(0, -signs * (few[:, :2] @ w[:2] + w[2]))
        return float(12 * (weights * losses).sum() + (w[:2] ** 2).sum() / 2)

    w = minimize(loss, np.zeros(3)).x
    found = _found(*(jnp.asarray(values) for values in (few, tests, used, signs, weights)))
    assert ((tests[:, :2] @ w[:2] + w[2] > 0) == np.asarray(found)).mean() > 0.999


def sae(W_dec: np.ndarray, W_enc: np.ndarray = EYE, b_dec: np.ndarray = NOTHING) -> SAE:
    return SAE(*(jnp.asarray(values, jnp.float32) for values in (W_enc, NOTHING, W_dec, b_dec)))


def of_row(some: SAE, x: np.ndarray, origin: np.ndarray = NOTHING) -> tuple[float, bool]:
    """Fractional and full absorption of a letter whose probe is direction 0, and whose main latent is latent 0."""
    main = np.zeros((1, D), bool)
    main[0, 0] = True
    words = jnp.asarray(x[None], jnp.float32), jnp.zeros(1, int), jnp.asarray(EYE[:, :1]), jnp.asarray(main)
    fraction, full = absorbed(some, *words, jnp.asarray(origin))
    return float(fraction[0]), bool(full[0])


def with_letter(*shares: float) -> np.ndarray:
    """Decoder rows of which 1, 2, … also write so much of the letter's direction."""
    W_dec = EYE.copy()
    W_dec[1 : 1 + len(shares), 0] = shares
    return W_dec


def test_a_letter_that_its_main_latent_writes_is_not_absorbed() -> None:
    assert of_row(sae(EYE), EYE[0] + EYE[1]) == (0, False)


@pytest.mark.parametrize(("share", "expected"), [(1.0, (1.0, True)), (0.5, (1.0, True)), (0.3, (0.0, False))])
def test_another_latent_has_absorbed_a_letter_if_it_writes_enough_where_main_latents_are_off(share, expected) -> None:
    W_enc = EYE.copy()
    W_enc[1, 0] = -1
    assert of_row(sae(with_letter(share), W_enc), EYE[0] + EYE[1]) == expected


def test_several_absorbing_latents_count_together_but_never_as_full_absorption() -> None:
    W_enc = EYE.copy()
    W_enc[1:5, 0] = -1
    row = EYE[:5].sum(axis=0)
    assert of_row(sae(with_letter(0.17, 0.17, 0.17, 0.17), W_enc), row) == (1, False)  # three add .51
    assert of_row(sae(with_letter(0.13, 0.13, 0.13, 0.13), W_enc), row) == (0, False)  # .39


def test_the_fraction_is_what_others_write_of_all_that_is_written() -> None:
    W_enc = EYE.copy()
    W_enc[1, 0] = -0.4
    fraction, full = of_row(sae(with_letter(0.5), W_enc), EYE[0] + EYE[1])  # the main latent adds .6, the other .5
    assert fraction == pytest.approx(0.4)  # of which .4 are missing
    assert not full


def test_projections_start_at_the_origin_that_is_given() -> None:
    some = sae(with_letter(0.5), EYE, -0.5 * EYE[0])
    assert of_row(some, EYE[0] + EYE[1]) == (0, False)  # the main latent adds all of 1
    fraction, _ = of_row(some, EYE[0] + EYE[1], -0.5 * EYE[0])
    assert fraction == 0  # .5 of 1.5 is less than .4
    fraction, _ = of_row(some._replace(W_dec=jnp.asarray(with_letter(0.8))), EYE[0] + EYE[1], -0.5 * EYE[0])
    assert fraction == pytest.approx(0.5 / 1.5)


def test_main_latents_are_found_and_their_holes_are_measured() -> None:
    rng = np.random.default_rng(0)
    letter = rng.integers(-1, 2, 600)
    x = 0.1 * np.abs(rng.standard_normal((600, D))) + 2 * EYE[letter] * (letter >= 0)[:, None]
    hole = (letter == 0) & (rng.random(600) < 0.3)
    x[hole] += 2 * EYE[4]  # a word of the first letter, whose own latent stands for both
    W_enc, W_dec = EYE.copy(), EYE.copy()
    W_enc[4, 0], W_dec[4, 0] = -2, 1
    task = words_of(letter, 2)
    some = SAE(jnp.asarray(W_enc), jnp.full(D, -0.5), jnp.asarray(W_dec), jnp.zeros(D))
    found = measure_letters(some, x.astype(np.float32), task, fit_letter_probes(x.astype(np.float32), task))
    tested = task.is_test & (letter == 0)
    assert [latents[0] for latents in found.main] == [0, 1]
    assert found.main[0][:2] == [0, 4]  # the other is taken for a split of the letter
    assert found.f1[0] < 0.95 < found.f1_main[0]
    assert found.f1[1] == 1
    assert found.full.tolist() == [0, 0]
    assert hole[tested].any()
