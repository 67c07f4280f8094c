"""One module per command; most write NAME.json and NAME.png. `python -m experiments` runs the toy set."""

import sys

TOY_SET = ("ground_truth", "absorption", "cosines", "all_prefixes", "ordering")
_THEORY = ("corrector", "identifiability", "log_sparsity", "mixing", "ordering_rules", "recovery", "weightings")
THEORY = tuple(f"theory.{name}" for name in _THEORY)
STUDIES = ("pareto", "compare", "hedging", "synth_bench", "train", "evaluate", "defaults", *THEORY)
STUDIES += ("language.first_letter", "sweep", "sweep_report")
BENCHMARKS = ("speed", "sweep_speed", "bench.store_speed", "bench.forward_speed")
LANGUAGE_SET = ("tinystories", "viewer")  # four figures, and a page

if sys.argv[:1] == ["-m"]:  # `python -m` is about to import one of these, which is a command
    from experiments.common.exits import start

    start()
