"""Who may import whom, and what the library's core must not do, read from the source."""

import ast
import tomllib
from pathlib import Path

import pytest

TOY = Path(__file__).resolve().parents[1] / "toy"
FILES = {str(path.relative_to(TOY.parent)): path for path in sorted(TOY.rglob("*.py"))}
FOREIGN = {"experiments", "tests", "matplotlib", "tyro", "tqdm"}
LOSS = {file for file in FILES if file.startswith("toy/loss/")}
LM = {file for file in FILES if file.startswith("toy/lm/")}
WORLD = {
    "toy.features.tree",
    "toy.features.named",
    "toy.features.tree_json",
    "toy.eval.metrics",
    "toy.features.directions",
    "toy.io",
    "toy.lm",
}
WORLD |= {
    "toy.data.store",
    "toy.data.shards",
    "toy.data.manifest",
    "toy.data.activations",
    "toy.data.stream",
    "toy.training.checkpoint",
}
WORLD |= {"toy.files.atomic", "toy.files.json_files", "toy.files.arrays", "toy.files.archive", "toy.interop.saelens"}
TRAINER = {
    "toy.training.run",
    "toy.training.step",
    "toy.training.maintenance",
    "toy.training.state",
    "toy.training.config",
    "toy.data.source",
    "toy.loss",
}
TRAINER |= {"toy.training.grid", "toy.training.advance", "toy.training.feed"}
MAY_NOT_IMPORT = {  # the trainer and its parts know no tree, no metric, no disk and no language model
    **dict.fromkeys(
        ("toy/training/run.py", "toy/training/grid.py", "toy/training/advance.py", "toy/training/feed.py"), WORLD
    ),
    **dict.fromkeys(("toy/training/loop.py", "toy/digest.py"), WORLD | TRAINER),
    "toy/training/checkpoint.py": (WORLD | TRAINER) - {"toy.io", "toy.training.checkpoint"},
    "toy/data/stream.py": (WORLD | TRAINER) - {"toy.data.activations", "toy.data.stream", "toy.data.source"},
    **dict.fromkeys(
        ("toy/data/store.py", "toy/data/shards.py", "toy/data/manifest.py"),
        (WORLD | TRAINER) - {"toy.io", "toy.data.activations", "toy.data.shards", "toy.data.manifest"},
    ),
    "toy/data/activations.py": (WORLD | TRAINER) - {"toy.io", "toy.data.activations", "toy.files.archive"},
    **dict.fromkeys(
        ("toy/training/config.py", "toy/training/state.py"),
        WORLD | {"toy.training.run", "toy.training.step", "toy.training.maintenance"},
    ),
    **dict.fromkeys(("toy/training/step.py", "toy/training/maintenance.py"), WORLD | {"toy.training.run"}),
    **dict.fromkeys(
        sorted(LOSS), WORLD | {"toy.training.run", "toy.training.step", "toy.data.source", "toy.training.controllers"}
    ),
    **{f"toy/{name}.py": WORLD | TRAINER for name in ("prefixes", "sae", "sparsity")},
    "toy/data/source.py": {
        "toy.training.run",
        "toy.training.step",
        "toy.loss",
        "toy.eval.metrics",
        "toy.io",
        "toy.lm",
        "toy.data.activations",
        "toy.training.feed",
    },
    "toy/features/tree.py": {
        "toy.training.run",
        "toy.training.step",
        "toy.loss",
        "toy.sae",
        "toy.eval.metrics",
        "toy.io",
        "toy.lm",
    },
    "toy/eval/streaming.py": WORLD | TRAINER,
    **{
        file: {"toy.training.run", "toy.training.grid", "toy.training.step", "toy.training.maintenance", "toy.loss"}
        for file in sorted(LM)
    },
    "toy/eval/metrics.py": (WORLD | TRAINER | {"toy.sae"}) - {"toy.features.tree", "toy.features.directions"},
    "toy/eval/against_tree.py": {"toy.training.run", "toy.training.step", "toy.loss", "toy.io", "toy.lm"},
}
MAY_OPEN = {
    "toy/io.py",
    "experiments/common/provenance.py",
    "toy/data/store.py",
    "toy/data/shards.py",
    "toy/data/activations.py",
}
MAY_OPEN |= {"toy/files/atomic.py", "toy/files/json_files.py", "toy/files/arrays.py"}
MAY_OPEN |= {f"toy/lm/{name}.py" for name in ("text", "tokenizer_json", "tokens", "torch_file", "weights")}
OPENERS = {"open", "fdopen", "mkstemp", "read_text", "write_text", "read_bytes", "write_bytes", "memmap", "savez"}
OPENERS |= {"save", "load", "loadtxt", "savetxt", "fromfile", "tofile", "load_file", "save_file", "urlopen"}


def imports(tree: ast.AST) -> set[str]:
    """Every imported name: `from toy import sae` is toy and toy.sae, `from toy.sae import SAE` toy.sae, too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name is from"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(names: set[str], modules: set[str]) -> set[str]:
    return {name for name in names if any(name == module or name.startswith(module + ".") for module in modules)}


def calls(tree: ast.AST) -> set[str]:
    """The last name of everything that is called."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        f.attr if isinstance(f, ast.Attribute) else f.id for f in functions if isinstance(f, ast.Attribute | ast.Name)
    }


def parsed(file: str) -> ast.Module:
    return ast.parse(FILES[file].read_text(encoding="utf-8"))


def test_the_rules_are_about_files_that_exist() -> None:
    assert len(FILES) >= 21
    assert MAY_NOT_IMPORT.keys() <= FILES.keys()
    assert {"toy/loss/__init__.py", "toy/loss/objective.py", "toy/loss/tiled.py"} <= LOSS <= MAY_NOT_IMPORT.keys()


def test_every_folder_of_the_library_is_installed_and_under_the_rules() -> None:
    packages = tomllib.loads((TOY.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    folders = {path.parent for path in FILES.values()}
    assert {folder.relative_to(TOY.parent).as_posix().replace("/", ".") for folder in folders} <= set(packages)


def test_the_rules_see_what_a_file_of_a_subfolder_does() -> None:
    tree = ast.parse("import toy.training.run\nfrom toy import step\nfrom toy.loss import gram\nopen('a')")
    assert within(imports(tree), MAY_NOT_IMPORT["toy/loss/tiled.py"]) == {"toy.training.run", "toy.training.step"}
    assert calls(tree) & OPENERS == {"open"}
    assert "toy.loss.gram" in imports(parsed("toy/loss/objective.py"))
    assert within(imports(parsed("toy/training/step.py")), {"toy.loss"})


@pytest.mark.parametrize("file", FILES)
def test_the_library_imports_no_experiment_no_plotting_and_no_command_line(file: str) -> None:
    assert not within(imports(parsed(file)), FOREIGN)


@pytest.mark.parametrize("file", MAY_NOT_IMPORT)
def test_a_layer_does_not_import_what_it_must_not_know(file: str) -> None:
    assert not within(imports(parsed(file)), MAY_NOT_IMPORT[file])


@pytest.mark.parametrize("file", [file for file in FILES if file not in MAY_OPEN])
def test_only_io_the_store_and_readers_of_models_and_texts_open_files(file: str) -> None:
    of_no_file = {
        "toy/training/loop.py": {"load", "save"},
        "experiments/sweeps/text.py": {"load"},
    }  # a checkpoint's, and a YAML text's
    assert not calls(parsed(file)) & OPENERS - of_no_file.get(file, set())


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_imported_inside_a_function(file: str) -> None:
    inside = [
        node.lineno
        for function in ast.walk(parsed(file))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not inside


@pytest.mark.parametrize("file", FILES)
def test_the_library_neither_prints_nor_configures_jax(file: str) -> None:
    tree = parsed(file)
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "print" not in calls(tree)
    settings = {name for name in attributes if name.startswith("jax.config")}
    assert settings <= ({"jax.config", "jax.config.values"} if file == "toy/training/jax_settings.py" else set())
    assert not within(imports(tree), {"jax.config"})
