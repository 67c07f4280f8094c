"""Hedging: training beside the exact objective, at a tiny size."""

from functools import partial

import numpy as np
import pytest

from experiments import hedging
from experiments.common import cli
from experiments.common.experiment import Work
from toy.io import plain
from toy.theory import minimised

SMALL = hedging.Config(edge_probs=(0.1, 0.4), betas=(0.0, 0.2, 4.0), n_seeds=2, n_steps=1_500)


@pytest.mark.slow
def test_training_ends_at_the_exact_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hedging, "minimised", partial(minimised, n_steps=6_000))
    monkeypatch.setattr(hedging, "NOISES", hedging.NOISES[:5])
    hedging.check(SMALL)
    results = plain(hedging.run(SMALL, Work()))
    for name in ("one latent", "pair"):
        assert np.max(results[name]["difference"]) < 0.03
    one, pair = (np.array(results[name]["exact"]["decoder"]) for name in ("one latent", "pair"))
    assert one[0, 0, 1] < one[1, 0, 1]  # the more often the child is on, the more of it
    assert pair[0, 1, 0] > 0.6  # absorption: the child's latent has the parent in it
    assert pair[2, 0, 1] > 0.1  # hedging: the parent's latent has the child in it
    record = {"config": plain(cli.describe(SMALL)), "seeds": SMALL.seeds, "results": results}
    assert 0 < hedging._crossing(results["pair"], 0, 1) < 4
    assert cli.as_png(hedging.plot(record))
    assert "free of the child at β" in hedging.summary(record)[-1]
    assert "one per seed" in hedging.caption(record)


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="betas: must not be negative"):
        hedging.Config(betas=(-1.0,))
    with pytest.raises(ValueError, match="edge_probs: need at least one"):
        hedging.Config(edge_probs=())
