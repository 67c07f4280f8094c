"""One HTML file to look at SAEs with: what their latents mean, how they form trees, and where they have holes.

RUN is the cache of the TinyStories chain, one of its `saes-…` folders, an SAE that `read_sae` reads, or a folder of
`experiments.train`. SAEs of a language model need --acts: an activation store, or a model that reads a corpus now, as
`tinystories --model` takes it.
Command: python -m experiments.viewer CACHE --acts CACHE/activations-…/valid --site resid_pre.1
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.common.exits import clean_exit
from experiments.common.options import parse
from experiments.language.models import check_there
from experiments.viewer.activity import measure
from experiments.viewer.collect import Shapes, collect, relate
from experiments.viewer.page import page
from experiments.viewer.relations import LEAST_EDGE
from experiments.viewer.runs import Wanted, is_toy, read_runs
from experiments.viewer.text import Given, Source, is_store, open_source
from experiments.viewer.toy_runs import toy_run
from toy.checks import POSITIVE, SEED, Whole, check_fields, quoted
from toy.files.atomic import prepare, writing


@dataclass(frozen=True)
class Options:
    """The options of the viewer: what is shown, and where the page is written."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The chain's cache or its folders saes-…, SAEs that read_sae reads, or runs of experiments.train."""
    acts: str | None = None
    """A store of activations, or a language model that reads --corpus now: a path, hub:OWNER/NAME or smollm2."""
    site: str | None = None
    """The place in the model that the SAEs are of, such as resid_pre.1; default: the store's only one."""
    seed: int = 0
    """The seed of the chain's SAEs."""
    l0: tuple[float, ...] = ()
    """The target L0 of the chain's large SAEs; default: all."""
    n_tokens: int = 250_000
    """Tokens of text on which the latents are measured, in whole stories."""
    n_top: int = Shapes._field_defaults["n_top"]
    """Contexts of each latent with its largest activations."""
    n_quantiles: int = Shapes._field_defaults["n_quantiles"]
    """Other contexts of each latent, evenly by rank of their largest activation."""
    least_edge: float = LEAST_EDGE
    """Edges of the trees of latents have more than this weight."""
    corpus: str | None = None
    """Stories for a model to read: a text file, hub:OWNER/NAME or hub:OWNER/NAME/FILE; default: the built-in corpus."""
    tokenizer: Path | None = None
    """A folder with tokenizer.json or llama2.c's .bin; default: that of the store's cache, or the model's own."""
    model: str | None = None
    """A store's language model, for effects on logits; default: that of its cache, if it is there."""
    n_heads: int | None = None
    """Attention heads of the model, where a .pt file does not tell."""
    title: str | None = None
    """Title of the page."""
    out: Path = Path("runs/viewer.html")
    """The file."""

    def __post_init__(self) -> None:
        check_fields(self, seed=SEED, n_tokens=Whole(), n_top=Whole(), n_quantiles=Whole(0), least_edge=POSITIVE)
        check_fields(self, n_heads=Whole())
        if not self.runs:
            raise ValueError("runs: give at least one folder or file with SAEs")
        if missing := [run for run in self.runs if not run.exists()]:
            raise ValueError(f"{quoted(str(missing[0]))}: no such file or folder")
        for option in ("acts", "model"):
            if (given := getattr(self, option)) is not None:
                check_there(option, given)
        if self.acts is None and not all(map(is_toy, self.runs)):
            strange = next(run for run in self.runs if not is_toy(run))
            raise ValueError(f"acts: {quoted(str(strange))} needs activations: give a store or a model by --acts")


def main() -> None:
    with clean_exit("nothing was written"):
        options = parse(Options, prog="python -m experiments.viewer", description=__doc__)
        if options.out.is_dir():
            raise ValueError(f"out: {quoted(str(options.out))} is a folder: give a file, such as viewer.html in it")
        prepare(options.out)
        start = time.monotonic()
        toys = [toy_run(run) for run in options.runs if is_toy(run)]
        data: dict[str, Any] = {"toys": toys} if toys else {}
        site = ""
        if of_model := [run for run in options.runs if not is_toy(run)]:
            site, found = _of_model(options, of_model)
            data |= found
        title = options.title or f"SAEs of {site or ', '.join(toy['name'] for toy in toys)}"
        text = page(title, data).encode()
        with writing(options.out) as file:
            file.write(text)
        print(f"{options.out}: {len(text) / 1e6:.1f} MB, {time.monotonic() - start:.0f} s")


def _of_model(options: Options, runs: list[Path]) -> tuple[str, dict[str, Any]]:
    """The site, and the data of all SAEs of a language model."""
    assert options.acts is not None
    given = Given(*(getattr(options, name) for name in Given._fields))
    with open_source(given) as source:
        print(f"{source.text.n_tokens:,} tokens of text, activations at {source.site}")
        stage = Path(options.acts).absolute().parent.name if is_store(options.acts) else None
        saes = read_runs(runs, Wanted(source.site, options.seed, options.l0 or None, stage))
        _check_width(source, saes)
        activities = []
        for one in saes:
            activities.append(measure(one, source))
            print(f"{one.name}: {one.n_latents} latents, L0 {activities[-1].l0:.2f}, FVU {activities[-1].fvu:.4f}")
        book = relate(saes, activities, source.text.n_tokens, options.least_edge)
        for tree in book.trees:
            n_edges = int((tree.parent >= 0).sum())
            print(f"{tree.name}: {n_edges:,} of {int((tree.parent >= -1).sum()):,} latents have a parent")
        return source.site, collect(source, book, Shapes(options.n_top, options.n_quantiles))


def _check_width(source: Source, saes: list[Any]) -> None:
    for one in saes:
        if (d_in := one.sae.b_dec.shape[0]) != source.acts.d_in:
            raise ValueError(f"{one.name}: has d_in = {d_in}, but the activations at {source.site} {source.acts.d_in}")


if __name__ == "__main__":
    sys.exit(main())
