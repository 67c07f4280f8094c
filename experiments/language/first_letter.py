"""Is the first letter of words absorbed? Chanin et al.'s task on a real language model, by SAEBench's definitions.

A word such as " lion" starts with L, which a linear probe reads off the model's residual stream. An SAE has latents
for it, which are off on some of these words, where a latent of the word itself stands for its letter, too
(`toy.lm.letter_absorption`). SAEs of four methods and two L0s are compared at an early layer and at a third of the
depth. Only the layers below are computed. Of this project's own methods it is `held_finish`: `rotated` searches for
rotations of at most 512 latents. Learning rate and AuxK were chosen by FVU, with 1,024 latents at the early layer and
seed 1000.
SmolLM2's residual streams have a few tokens of enormous norm: at layers 3 to 9 many a " the", at 12 the ends of texts.
The default layers, 2 and 10, have none but the first of a text, which is left out, as it is always the begin.
Claim: Matryoshka SAEs absorb letters less than vanilla ones at the same L0.
Expected means over seeds 0 and 1 at L0 20 and 60, `resid_pre.2` before `resid_pre.10`: absorption fractions of .302,
.200, .155, .098 for vanilla; .209, .215, .161, .338 for BatchTopK; .159, .136, .084, .063 for Matryoshka; .190, .129,
.107, .077 for `held_finish`. The probe finds .946 and .949 of the letters.
Command: python -m experiments.language.first_letter --corpus stories.txt (with the extra smollm2). It took 5 minutes on
an H200 that other jobs shared, with texts sampled before; on 2 cores it takes hours, which is an estimate by the number
of multiplications, not a measurement.
Not in the post, which measures absorption on words of stories; see `tinystories_absorption`.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common import plots
from experiments.common.cli import main
from experiments.common.experiment import Experiment, Work
from experiments.common.measured import lane
from experiments.common.plots import shown_name
from experiments.common.seeds import seeds_text
from experiments.language.letter_config import LetterConfig
from experiments.language.letter_record import paired_lines, read_letters, values_of
from experiments.language.letter_saes import (
    LetterData,
    check_families,
    families,
    held_out_chunks,
    make_data,
    train_family,
)
from toy.eval.metrics import mean_known
from toy.eval.streaming import measure_fit
from toy.lm.first_letter import fit_letter_probes
from toy.lm.letter_absorption import LetterAbsorption, measure_letters
from toy.lm.model import Site

MEASURES = {
    "full": "Full\nabsorption",
    "fraction": "Absorption\nfraction",
    "f1_main": "F1 of\nmain latents",
    "n_main": "Number of\nmain latents",
    "fvu": "FVU",
}
COLOURS = {"batchtopk": "#edae49", "held_finish": "#6a4c93"}


def check(cfg: LetterConfig) -> None:
    lm, _ = cfg.given
    needed = {"context": cfg.context, "n_examples": cfg.task.prompts.ids.shape[1]}
    for name, n_tokens in needed.items():
        if n_tokens > lm.cfg.context:
            raise ValueError(f"{name}: the model's context is {lm.cfg.context:,}, of {n_tokens:,} tokens needed")
    check_families(cfg, lm.cfg.d_model)


def n_steps(cfg: LetterConfig) -> int:
    return sum(len(families(cfg, site)) for site in cfg.at) * cfg.n_steps


def run(cfg: LetterConfig, work: Work) -> dict[str, Any]:
    data = make_data(cfg)
    return {
        "words": {"n": len(data.task.words), "n_tested": int(data.task.is_test.sum()), "letters": data.task.letters},
        "tokens": {"train": data.train.n_rows, "valid": data.valid.n_rows, "text": data.n_tokens},
        "sites": {str(site): _of_site(cfg, data, site, work) for site in cfg.at},
        "seconds": {"activations": data.stage.notes["seconds"]},
    }


def _of_site(cfg: LetterConfig, data: LetterData, site: Site, work: Work) -> dict[str, Any]:
    x = np.asarray(data.words[str(site)])
    probes = fit_letter_probes(x, data.task)
    letter = data.task.letter[data.task.is_test]
    n_read = np.bincount(letter[probes.correct(letter)], minlength=len(data.task.letters))
    norms = np.linalg.norm(next(held_out_chunks(data, site)).astype(np.float32), axis=1)
    found: dict[str, Any] = {
        "norms": {"median": np.median(norms), "max": norms.max()},
        "probe": {"accuracy": probes.accuracy, "f1": probes.f1, "n_read": n_read},
        "methods": {},
    }
    measured = np.flatnonzero(probes.f1 >= cfg.min_f1)
    for family in families(cfg, site):
        work.compiling()
        saes, made = train_family(cfg, data, family, work)
        of_method = found["methods"].setdefault(family.name, {})
        for i, seed in enumerate(cfg.seeds):
            sae = lane(saes, i)
            fit = measure_fit(sae, held_out_chunks(data, site))
            told = {"seed": seed, "fvu": fit.fvu, "l0": fit.l0, "dead": fit.dead(), "seconds": made.notes["seconds"]}
            told["l0_of_training"] = made.notes["l0_of_training"][i]
            of_method.setdefault(f"{family.target_l0:g}", []).append(
                told | _of_letters(measure_letters(sae, x, data.task, probes), measured)
            )
    return found


def _of_letters(found: LetterAbsorption, measured: np.ndarray) -> dict[str, Any]:
    """The measures of each letter, and their means over the letters that the probe reads."""
    letters = {name: values for name, values in found._asdict().items() if name != "main"}
    letters["n_main"] = np.array([len(latents) for latents in found.main])
    means = {name: mean_known(np.asarray(values, float)[measured]) for name, values in letters.items()}
    return {"mean": means, "letters": letters | {"main": found.main}}


def summary(record: dict[str, Any]) -> list[str]:
    lines = []
    for site, found in record["results"]["sites"].items():
        probe, letters = found["probe"], read_letters(record, site)
        names = record["results"]["words"]["letters"]
        n_read = sum(n for n, c in zip(probe["n_read"], names, strict=True) if c in letters)
        lines.append(
            f"{site}: the probe finds {probe['accuracy']:.3f} of letters, mean F1 {np.mean(probe['f1']):.3f}; "
            f"measured: {''.join(letters)}, on {n_read:,} words that it reads"
        )
        for method, by_l0 in found["methods"].items():
            for l0, saes in by_l0.items():
                names = ("l0", "dead", *MEASURES, "full_from_bias", "fraction_from_bias")
                means = {name: np.mean(np.array(values_of(saes, name), float)) for name in names}
                text = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
                lines.append(f"{site}, {method}, L0 {l0}: {text}")
        lines += paired_lines(record, site)
    return lines


def caption(record: dict[str, Any]) -> str:
    config, results = record["config"], record["results"]
    text = " and ".join(f"{n:,} {name}" for name, n in results["tokens"]["text"].items())
    n_tokens = config["n_steps"] * config["batch_size"]
    return (
        f"First-letter absorption on {shown_name(config['model'])} by SAEBench's definitions, {config['n_latents']:,} "
        f"latents, {seeds_text(record['seeds'])}, as dots; SAEs are trained on {n_tokens:,} tokens, of {text} in all; "
        f"means over the letters that the probe reads with an F1 of {config['min_f1']:g} or more, of "
        f"{results['words']['n_tested']:,} words"
    )


def plot(record: dict[str, Any]) -> Figure:
    sites, methods = record["results"]["sites"], record["config"]["methods"]
    with plots.styled(0.6 + 1.6 * len(sites)) as figure:
        panels = figure.subplots(len(sites), 1 + len(MEASURES), squeeze=False, width_ratios=[2.6] + [1] * len(MEASURES))
        for row, (site, found) in zip(panels, sites.items(), strict=True):
            _plot_probe(row[0], record, site)
            for ax, name in zip(row[1:], MEASURES, strict=True):
                _plot_measure(ax, found["methods"], methods, name)
        for ax, title in zip(panels[0], ("F1 of the probe", *MEASURES.values()), strict=True):
            ax.set_title(title, fontsize=7)
        for ax, label in zip(panels[-1], ("letter", *["target L0"] * len(MEASURES)), strict=True):
            ax.set_xlabel(label, fontsize=7)
        for i in range(len(methods)):
            panels[0, 1].plot([], [], color=_colour(methods, i), label=_label(methods, i))
        figure.legend(loc="outside upper right", ncols=len(methods))
    return figure


def _plot_probe(ax: Axes, record: dict[str, Any], site: str) -> None:
    letters, f1 = record["results"]["words"]["letters"], record["results"]["sites"][site]["probe"]["f1"]
    read = read_letters(record, site)
    colours = [plots.COLOURS["truth"] if c in read else "#cccccc" for c in letters]
    ax.bar(range(len(letters)), f1, color=colours, width=0.8)
    ax.axhline(record["config"]["min_f1"], color="white", linestyle="--", linewidth=0.8)
    ax.set_xticks(range(len(letters)), letters, fontsize=5.5)
    ax.tick_params(axis="x", length=0)
    ax.set(ylim=(0, 1), ylabel=site)


def _plot_measure(ax: Axes, by_method: dict[str, Any], methods: list[str], name: str) -> None:
    for i, method in enumerate(methods):
        for j, saes in enumerate(by_method[method].values()):
            at = j + 0.7 * (i - (len(methods) - 1) / 2) / len(methods)
            plots.spread(ax, at, values_of(saes, name), _colour(methods, i), width=0.04, size=4)
    targets = list(by_method[methods[0]])
    ax.set_xticks(range(len(targets)), targets)
    ax.set(xlim=(-0.45, len(targets) - 0.55), ylim=(0, None))
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _short(methods: list[str], i: int) -> str:
    """The name of a method without its fields, where no other method has the same."""
    names = [method.partition(":")[0] for method in methods]
    return names[i] if names.count(names[i]) == 1 else methods[i]


def _label(methods: list[str], i: int) -> str:
    name = _short(methods, i)
    return {"batchtopk": "BatchTopK", "held_finish": "held finish"}.get(name) or plots.label(name)


def _colour(methods: list[str], i: int) -> str:
    name = _short(methods, i)
    return COLOURS.get(name) or plots.COLOURS.get(name) or f"C{i}"


EXPERIMENT = Experiment("first_letter", LetterConfig, run, summary, plot, check, n_steps, caption, folder="language.")

if __name__ == "__main__":
    main(EXPERIMENT)
