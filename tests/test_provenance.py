"""Which code a digest is of, and which settings of JAX count."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.common import provenance
from experiments.common.provenance import code_digest
from experiments.language import stages
from experiments.language.stages import stage
from toy.data.source import ArraySource
from toy.prefixes import full
from toy.training import jax_settings
from toy.training.checkpoint import FileCheckpoint
from toy.training.config import Hypers, TrainConfig
from toy.training.jax_settings import jax_flags
from toy.training.run import train

FILES = {
    "toy/a.py": "import numpy\nfrom toy.b import thing\n",
    "toy/b.py": "def thing():\n    from toy import c\n",
    "toy/c.py": "import toy.d.e\n",
    "toy/d/__init__.py": "",
    "toy/d/e.py": "from toy import a\n",  # a circle
    "toy/other.py": "",
    "experiments/x.py": "from toy.d import nothing\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    code_digest.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("module", "changed", "is_of_it"),
    [
        *(("toy.a", name, True) for name in ("toy/a.py", "toy/b.py", "toy/c.py", "toy/d/e.py")),
        *(("toy.a", name, False) for name in ("toy/other.py", "experiments/x.py")),
        ("experiments.x", "toy/d/__init__.py", True),
        ("experiments.x", "toy/a.py", False),
    ],
)
def test_a_digest_is_of_a_module_and_all_that_it_imports(
    module: str, changed: str, is_of_it: bool, project: Path
) -> None:
    before = code_digest(module)
    code_digest.cache_clear()
    assert code_digest(module) == before
    code_digest.cache_clear()
    (project / changed).write_text(FILES[changed] + "# changed\n")
    assert (code_digest(module) != before) == is_of_it


def test_a_module_that_is_not_there_is_named(project: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"toy\.nowhere: no module of this project"):
        code_digest("toy.nowhere")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")


def test_settings_at_their_defaults_are_not_told(unset: None) -> None:
    assert jax_flags() == {}
    known = jax_settings._JAX_DEFAULTS
    assert {name: jax_settings._shown(jax.config.values[name]) for name in known} == known  # no name is misspelt


def test_settings_that_change_numbers_are_told_as_they_are_now(unset: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with jax.enable_x64(True), jax.default_matmul_precision("bfloat16"), jax.threefry_partitionable(False):
        told = {"jax_default_matmul_precision": "bfloat16", "jax_enable_x64": "True"}
        assert jax_flags() == told | {"jax_threefry_partitionable": "False"}
    with jax.numpy_dtype_promotion("strict"):
        assert jax_flags() == {"jax_numpy_dtype_promotion": "strict"}
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert jax_flags() == {"NVIDIA_TF32_OVERRIDE": "1"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("--xla_backend_optimization_level=0", {"xla_backend_optimization_level": "0"}),
        ("--xla_a=1 --xla_cpu_enable_fast_math  --xla_a=2", {"xla_a": "2", "xla_cpu_enable_fast_math": "true"}),
        ("--xla_force_host_platform_device_count=2 --xla_dump_to=/x --xla_dump_hlo_as_text", {}),
        ("--xla_disable_hlo_passes='a b,c'", {"xla_disable_hlo_passes": "a b,c"}),
        ("--xla_a='b", {"xla_a": "'b"}),
        ("  ", {}),
    ],
)
def test_flags_of_xla_count_unless_they_are_known_not_to(
    text: str, told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", text)
    assert jax_flags() == told


def test_flags_of_xla_may_stand_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flags").write_text("--xla_a=1\n--xla_b=2\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert jax_flags() == {"xla_a": "1", "xla_b": "2"}


def test_a_checkpoint_of_other_settings_is_refused_and_a_stage_has_another_folder(
    tmp_path: Path, unset: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, source = TrainConfig(4, n_steps=2, batch_size=4), ArraySource(jnp.eye(4))
    hypers, key = Hypers(full(4), target_l0=1.0), jax.random.key(0)
    train(key, source, hypers, cfg=cfg, checkpoint=FileCheckpoint(tmp_path / "run"))
    monkeypatch.setattr(stages, "file_digest", lambda module: "of this test")
    found = []
    for flags in ("", "", "--xla_backend_optimization_level=1"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        with stage(tmp_path, "s", {}, __name__) as made:
            found.append(made)
    assert [made.done for made in found] == [False, True, False]
    with pytest.raises(ValueError, match=r"flags\.xla_backend_optimization_level = absent, which now is 1"):
        train(key, source, hypers, cfg=cfg, checkpoint=FileCheckpoint(tmp_path / "run"))


def test_what_is_replaced_while_a_program_runs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.replaced("experiments.sweeps.lanes", "experiments.sweep_report") == []
    with monkeypatch.context() as patch:
        patch.setattr("toy.loss.objective.gram_mse", lambda *_: 0)
        patch.setattr("toy.methods.topk.auxk_mse", abs)
        patch.setattr(
            "toy.training.controllers.control", lambda *_: 0
        )  # where it is defined, and so no more what others import
        patch.setattr("toy.training.state.TrainState", dict)
        assert set(provenance.replaced("toy.training.step", "toy.methods")) >= {
            *(
                "toy.loss.objective.gram_mse",
                "toy.methods.topk.auxk_mse",
                "toy.training.controllers.control",
                "toy.training.step.control",
            ),
            *("toy.training.state.TrainState", "toy.training.step.TrainState"),
        }
        assert provenance.replaced("toy.features.node") == []
    assert provenance.replaced("toy.training.step") == []
