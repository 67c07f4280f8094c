"""The comparison of methods: whatever has a name stands beside the others, and nothing is trained twice."""

import re
from pathlib import Path
from typing import Any

import pytest

from experiments import compare
from experiments.common import cli
from experiments.common.experiment import Work
from experiments.sweeps.columns import table_of
from experiments.sweeps.record import load_sweep_record
from toy.eval.metrics import mean_known

MINE = f"{Path(__file__).parent}/methods/tied.py:tied"


def config(folder: Path, **fields: Any) -> compare.Config:
    given: dict[str, Any] = dict(scenes=("reference", "ratio 1"), n_seeds=2, n_steps=20, l0_ratios=(1.0, 2.0))
    return compare.Config(**(given | fields), store=folder / "store.sqlite")


def test_what_was_trained_is_kept_by_the_experiments_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(path: Path, *_: Any, **__: Any) -> Any:
        raise ValueError(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("experiments.sweeps.panels.open_store", stop)
    for cfg, kept in ((compare.Config(), tmp_path / "matryoshka-toy/sweeps/compare.sqlite"), (config(tmp_path), None)):
        with pytest.raises(ValueError, match=re.escape(str(kept or tmp_path / "store.sqlite"))):
            compare.run(cfg, Work(progress=lambda _: None))


@pytest.mark.slow
def test_a_method_of_a_users_stands_beside_the_shipped_ones_and_costs_only_its_own_runs(tmp_path: Path) -> None:
    steps: list[int] = []
    compare.run(config(tmp_path, methods=("vanilla",)), Work(progress=steps.append))
    assert sum(steps) == 2 * 4
    cfg = config(tmp_path, methods=("vanilla", MINE))
    found = compare.run(cfg, Work(progress=steps.append))
    assert steps[-1] < 2 * 4  # those of vanilla are told at once
    record = {"name": "compare", "config": cli.describe(cfg), "seeds": cfg.seeds, "results": found}
    assert list(found) == ["vanilla", MINE]
    assert list(found[MINE]) == ["reference", "ratio 1", "L0 1", "L0 2"]
    assert found["vanilla"]["reference"] == found["vanilla"]["L0 1"]
    assert found["vanilla"]["reference"]["n"] == len(found["vanilla"]["reference"]["fvu"]) == 2
    assert cli.as_png(compare.plot(record))
    assert len(compare.summary(record)) == 2
    assert "seeds 0 to 1" in compare.caption(record)


def test_learning_rates_are_those_that_the_tuning_found_best() -> None:
    """The most recovered runs; of equal ones the greater mean of least cosines."""
    table = table_of(load_sweep_record(Path(compare.__file__).parents[1] / "figures/sweep_tuning.json"))
    rates, methods = table.axes["learning_rate"], table.axes["method"]

    def merit(method: int, rate: int) -> tuple[float, float]:
        cells = table.having(method=method, learning_rate=rate)
        assert cells.sum() == 16
        return float(table.metrics["recovered"][cells].sum()), mean_known(table.metrics["min_cosine"][cells])

    best = {name: max(range(len(rates)), key=lambda rate, i=i: merit(i, rate)) for i, name in enumerate(methods)}
    assert {name: rates[rate] for name, rate in best.items()} == compare.TUNED


@pytest.mark.slow
@pytest.mark.parametrize("method", compare.TUNED)
def test_every_shipped_run_can_be(method: str, tmp_path: Path) -> None:
    config(tmp_path, methods=(method,), scenes=tuple(compare.SCENES)).panels.check()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"methods": ("tide",)}, r"^method: expected vanilla"),
        ({"methods": ("topk:k=99",)}, r"^methods: topk:k=99 on reference: method: k = 99 is more than n_latents = 20"),
    ],
)
def test_a_method_that_cannot_be_is_refused_before_any_work(fields: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        config(tmp_path, **fields).panels.check()


def test_a_scene_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^scenes: expected reference, three_level, .*, got 'tree'"):
        config(tmp_path, scenes=("tree",))
