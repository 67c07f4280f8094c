"""Stories that a model tells: the published ones, those of sampling with nothing kept, the model's probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_lm_llama import STORIES, TOKENIZER, needs_stories
from test_lm_model import a_model, each_family

import toy.lm.sample
from toy.lm.config import Family
from toy.lm.corpus import make_stories
from toy.lm.model import LM
from toy.lm.sample import sample_stories
from toy.lm.tokens import Tokenizer, load_tokenizer, train_tokenizer
from toy.lm.weights import load_model

OWN = train_tokenizer(make_stories(5, 0), 300)
SMALL = OWN._replace(begin=0, end=12, pad=2, unk=3)  # for models of 13 ids
PUBLISHED = (  # karpathy/llama2.c, doc/stories260K.md
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to "
    "play with your ball, but I can't find it.\"\n"
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" Her mom said, "
    "\"Don't worry, Lily. We can help you."
)
ZOO = (
    "Zoo was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She "
    "wanted to play with it, but she didn't want to play with"
)  # of `run stories260K.bin -z tok512.bin -t 0 -i Zoo -n 60`, as ports of llama2.c publish it


@needs_stories
@pytest.mark.parametrize(("prompt", "n_tokens", "text"), [("", 256, PUBLISHED), ("Zoo", 60, ZOO)])
def test_the_likeliest_stories_of_stories260k_are_the_published_ones(prompt: str, n_tokens: int, text: str) -> None:
    lm, tokenizer = load_model(STORIES), load_tokenizer(TOKENIZER)
    told = sample_stories(jax.random.key(0), lm, tokenizer, 1, prompt=prompt, temperature=0, context=1 + n_tokens)
    assert told.length.tolist() == [1 + n_tokens]
    assert tokenizer.decode(told.ids[0]) == text
    np.testing.assert_array_equal(told.ids[0, 1:], tokenizer.encode([text])[0])


def slow_story(key: jax.Array, lm: LM, tokenizer: Tokenizer, start: list[int], temperature: float, n: int) -> list[int]:
    """One story, for each token of which the whole of it is read again."""
    ids = list(start)
    while len(ids) < n and not (len(ids) > len(start) and ids[-1] == tokenizer.end):
        whole = np.pad(np.array([ids], np.int32), ((0, 0), (0, n - len(ids))))  # what follows changes nothing
        logits = np.asarray(forward(lm, whole))[0, len(ids) - 1]
        noise = jax.random.gumbel(jax.random.fold_in(key, len(ids) - 1), logits.shape)
        ids.append(int(np.argmax(logits + temperature * np.asarray(noise))))
    return ids


forward = nnx.jit(lambda lm, ids: lm(ids))


@each_family
def test_stories_are_those_of_sampling_without_kept_keys(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.lm.sample, "SEGMENT", 4)
    monkeypatch.setattr(toy.lm.sample, "BATCH", 8)
    lm, key = a_model(family, window=3), jax.random.key(3)
    told = sample_stories(key, lm, SMALL, 20, first=7, temperature=1.0, context=11)
    for i, (ids, length) in enumerate(zip(told.ids, told.length, strict=True)):
        slow = slow_story(jax.random.fold_in(key, 7 + i), lm, SMALL, [SMALL.begin], 1.0, 11)
        assert ids[:length].tolist() == slow
        assert (ids[length:] == SMALL.pad).all()
    assert told.document.tolist() == list(range(7, 27))
    assert not told.start.any()
    assert len(set(told.length.tolist())) > 1


def test_a_story_goes_on_from_the_prompt_and_stops_where_it_ends_though_other_stories_go_on() -> None:
    lm, key = a_model("llama", vocab_size=300, context=30), jax.random.key(0)
    (prompt,) = OWN.encode(["One day, Lily"])
    for one in (OWN, OWN._replace(begin=1, end=1, pad=1)):  # stories of llama2.c end where the next begins
        told = sample_stories(key, lm, one, 40, prompt="One day, Lily", temperature=0.3, context=25)
        np.testing.assert_array_equal(told.ids[:, : 1 + len(prompt)], np.tile([one.begin, *prompt], (40, 1)))
        for i, (ids, length) in enumerate(zip(told.ids[:3], told.length, strict=False)):
            story = jax.random.fold_in(key, i)
            assert ids[:length].tolist() == slow_story(story, lm, one, [one.begin, *prompt.tolist()], 0.3, 25)
        assert ((told.length == 25) | (told.ids[np.arange(40), told.length - 1] == one.end)).all()


def test_tokens_are_drawn_with_the_models_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.lm.sample, "BATCH", 20_000)
    lm = a_model("llama")
    told = sample_stories(jax.random.key(0), lm, SMALL, 20_000, temperature=2.0, context=2)
    shares = np.bincount(told.ids[:, 1], minlength=13) / 20_000
    expected = np.asarray(jax.nn.softmax(lm(jnp.zeros((1, 1), jnp.int32))[0, 0] / 2))
    assert expected.max() < 0.9
    assert (np.abs(shares - expected) < 4.5 * np.sqrt(expected / 20_000)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_stories": 0}, "n_stories: must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature: must not be negative"),
        ({"temperature": float("nan")}, "temperature: must be finite"),
        ({"context": 13}, "context: must be at most 12, got 13"),
        ({"first": -1}, "first: must not be negative"),
        ({"prompt": "One day, there was a little girl"}, "prompt: .* tokens leave no room in a context of 12"),
    ],
)
def test_arguments_that_give_no_story_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"n_stories": 1} | changes
    with pytest.raises(ValueError, match=message):
        sample_stories(jax.random.key(0), a_model("llama", vocab_size=300), OWN, **arguments)
