"""The built-in corpus: short artificial stories whose words form a known tree of concepts.

Every level of a concept determines some of the text: the sex of a name its pronouns, and the name itself a favourite
toy; the habitat of an animal where it is met, and the animal its sound; the kind of an emotion what a child does, and
the emotion its cause. A model that predicts such text therefore has to learn all levels.
"""

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np

from toy.checks import SEED, Whole, check_numbers

T = TypeVar("T")


class Concept(NamedTuple):
    """A set of words, and the narrower concepts within it."""

    name: str
    words: tuple[str, ...] = ()  # those that belong to no narrower concept
    parts: tuple["Concept", ...] = ()

    def all_words(self) -> tuple[str, ...]:
        return self.words + tuple(word for part in self.parts for word in part.all_words())

    def walk(self) -> list["Concept"]:
        """Returns this concept and all within it, broader ones first."""
        return [self, *(inner for part in self.parts for inner in part.walk())]


class Sex(NamedTuple):
    """Words of one grammatical sex."""

    child: str
    he: str
    his: str
    names: tuple[str, ...]  # the most frequent first
    relatives: tuple[str, ...]


GIRL = Sex("girl", "she", "her", ("Lily", "Sue", "Mia", "Anna", "Lucy", "Emma"), ("mom", "sister", "grandma", "aunt"))
BOY = Sex("boy", "he", "his", ("Tom", "Ben", "Max", "Sam", "Jack", "Leo"), ("dad", "brother", "grandpa", "uncle"))
TOYS = ("ball", "doll", "kite", "drum", "puzzle", "boat", "robot", "truck", "bike", "crown", "swing", "puppet")
COLOURS = ("red", "blue", "green", "yellow")
FOODS = ("apple", "cake", "cookie", "pear", "sandwich", "carrot")
ANIMALS = {  # (animal, sound) by habitat
    "house": (("cat", "meowed"), ("dog", "barked"), ("hamster", "squeaked"), ("parrot", "talked")),
    "barn": (("cow", "mooed"), ("pig", "oinked"), ("hen", "clucked"), ("horse", "neighed")),
    "forest": (("bear", "growled"), ("fox", "yelped"), ("squirrel", "chattered"), ("wolf", "howled")),
}
KINDS = {"house": "pet", "barn": "farm animal", "forest": "wild animal"}
DEEDS = {"house": "sat on the sofa", "barn": "ate some hay", "forest": "ran into the trees"}
EMOTIONS = {  # (emotion, cause) by what a child does
    "smiled": (("happy", "the sun was out"), ("proud", "the tower was tall"), ("excited", "a party was near")),
    "cried": (("sad", "the toy broke"), ("scared", "the thunder was loud"), ("lonely", "nobody was home")),
}
GREETINGS = ("Hello", "Hi", "Welcome")
PLEAS = ("Please", "Sorry", "Thanks")

CONCEPTS = (
    Concept(
        "person",
        parts=tuple(
            Concept(
                name,
                parts=(
                    Concept(f"{name} words", (sex.child, sex.he, sex.his)),
                    Concept(f"{name} names", tuple(word.lower() for word in sex.names)),
                    Concept(f"{name} relatives", sex.relatives),
                ),
            )
            for name, sex in (("female", GIRL), ("male", BOY))
        ),
    ),
    Concept(
        "animal", parts=tuple(Concept(KINDS[home], tuple(name for name, _ in kept)) for home, kept in ANIMALS.items())
    ),
    Concept(
        "emotion",
        parts=tuple(
            Concept(name, tuple(emotion for emotion, _ in EMOTIONS[deed]))
            for name, deed in (("good emotion", "smiled"), ("bad emotion", "cried"))
        ),
    ),
    Concept(
        "opening of speech",
        parts=tuple(
            Concept(name, tuple(word.lower() for word in said))
            for name, said in (("greeting", GREETINGS), ("plea", PLEAS))
        ),
    ),
)


def make_stories(n_stories: int, seed: int) -> list[str]:
    """Stories of about 100 words, each a function of the seed and its index."""
    check_numbers({"n_stories": n_stories, "seed": seed}, {"n_stories": Whole(), "seed": SEED})
    return [_Story(np.random.default_rng([seed, i])).tell() for i in range(n_stories)]


class _Story:
    """The characters of one story, and its possible scenes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._uniform = iter(rng.random(100).tolist())  # drawn at once, which is much faster
        self.sex, self.friend_sex = self._one((GIRL, BOY)), self._one((GIRL, BOY))
        self.name = self._often_first(self.sex.names)
        self.friend = self._often_first([name for name in self.friend_sex.names if name != self.name])

    def _one(self, options: Sequence[T]) -> T:
        return options[int(next(self._uniform) * len(options))]

    def _often_first(self, options: Sequence[T]) -> T:
        """Draw the i-th with probability ∝ 1/(i + 1), since real words differ in frequency."""
        odds = list(accumulate(1 / (i + 1) for i in range(len(options))))
        return options[bisect(odds, next(self._uniform) * odds[-1])]

    def tell(self) -> str:
        scenes = (self._play, self._family, self._animal, self._feeling, self._visit, self._animal, self._speech)
        order = sorted(range(len(scenes)), key=lambda _: next(self._uniform))[:5]
        return " ".join([self._opening(), *(scenes[i]() for i in order), self._ending()])

    def _toy(self, name: str) -> str:
        """The favourite toy of a name in most cases, else any."""
        names = GIRL.names + BOY.names
        return TOYS[names.index(name)] if next(self._uniform) < 0.75 else self._one(TOYS)

    def _opening(self) -> str:
        when = self._one(("Once upon a time, there was", "One day, there was", "In a small town, there lived"))
        return f"{when} a little {self.sex.child} named {self.name}."

    def _play(self) -> str:
        he, his = self.sex.he, self.sex.his
        start = self._one((f"{self.name} liked to play with", f"{he.capitalize()} went outside with"))
        toy, colour = self._toy(self.name), self._one(COLOURS)
        end = self._one(
            (
                f"It was {his} favorite.",
                f"{self.name} showed it to {self.friend}.",
                f"{he.capitalize()} played all day.",
            )
        )
        return f"{start} {his} {colour} {toy}. {end}"

    def _family(self) -> str:
        sex = self._one((GIRL, BOY))
        relative, food = self._often_first(sex.relatives), self._one(FOODS)
        gift = f"{self.sex.his.capitalize()} {relative} gave {self.name} a big {food}."
        return f"{gift} {sex.he.capitalize()} told {self.name} to share it with {self.friend}."

    def _animal(self) -> str:
        home = self._one(tuple(ANIMALS))
        animal, sound = self._often_first(ANIMALS[home])
        seen = self._one(
            (f"{self.name} saw a {animal} in the {home}.", f"In the {home}, a {animal} came to {self.name}.")
        )
        return f"{seen} The {animal} {sound} and {DEEDS[home]}."

    def _feeling(self) -> str:
        deed = self._one(tuple(EMOTIONS))
        emotion, cause = self._often_first(EMOTIONS[deed])
        sex, name = self._one(((self.sex, self.name), (self.friend_sex, self.friend)))
        return f"{name} was {emotion} because {cause}. {sex.he.capitalize()} {deed}."

    def _visit(self) -> str:
        he = self.friend_sex.he
        toy = self._toy(self.friend)
        return f'"{self._often_first(GREETINGS)}, {self.name}!" said {self.friend}. {he.capitalize()} had a {toy}.'

    def _speech(self) -> str:
        plea, toy = self._often_first(PLEAS), self._toy(self.name)
        asked = {"Please": f"can I have the {toy}?", "Sorry": f"I lost the {toy},", "Thanks": f"I love the {toy},"}[
            plea
        ]
        sex = self._one((GIRL, BOY))
        return f'"{plea}, {asked}" {self.name} said to {self.sex.his} {self._often_first(sex.relatives)}.'

    def _ending(self) -> str:
        he = self.sex.he.capitalize()
        return self._one(
            (
                f"Then {self.name} and {self.friend} went home.",
                f"{he} hugged {self.sex.his} {self._often_first(self.sex.relatives)} and went to bed.",
                f"{self.name} and {self.friend} were friends from that day on.",
            )
        )
