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
WORLD = {"toy.tree", "toy.trees", "toy.tree_json", "toy.metrics", "toy.dictionary", "toy.io", "toy.lm"}
WORLD |= {"toy.store", "toy.shards", "toy.manifest", "toy.matrix", "toy.stream", "toy.checkpoint"}
WORLD |= {"toy.files", "toy.json_files", "toy.arrays", "toy.archive", "toy.saelens"}
TRAINER = {"toy.train", "toy.step", "toy.upkeep", "toy.state", "toy.config", "toy.source", "toy.loss"}
TRAINER |= {"toy.grid", "toy.advance", "toy.feed"}
MAY_NOT_IMPORT = {  # the trainer and its parts know no tree, no metric, no disk and no language model
    **dict.fromkeys(("toy/train.py", "toy/grid.py", "toy/advance.py", "toy/feed.py"), WORLD),
    **dict.fromkeys(("toy/loop.py", "toy/facts.py"), WORLD | TRAINER),
    "toy/checkpoint.py": (WORLD | TRAINER) - {"toy.io", "toy.checkpoint"},
    "toy/stream.py": (WORLD | TRAINER) - {"toy.matrix", "toy.stream", "toy.source"},
    **dict.fromkeys(
        ("toy/store.py", "toy/shards.py", "toy/manifest.py"),
        (WORLD | TRAINER) - {"toy.io", "toy.matrix", "toy.shards", "toy.manifest"},
    ),
    "toy/matrix.py": (WORLD | TRAINER) - {"toy.io", "toy.matrix", "toy.archive"},
    **dict.fromkeys(("toy/config.py", "toy/state.py"), WORLD | {"toy.train", "toy.step", "toy.upkeep"}),
    **dict.fromkeys(("toy/step.py", "toy/upkeep.py"), WORLD | {"toy.train"}),
    **dict.fromkeys(sorted(LOSS), WORLD | {"toy.train", "toy.step", "toy.source", "toy.sparsity"}),
    **{f"toy/{name}.py": WORLD | TRAINER for name in ("prefixes", "sae", "sparsity")},
    "toy/source.py": {"toy.train", "toy.step", "toy.loss", "toy.metrics", "toy.io", "toy.lm", "toy.matrix", "toy.feed"},
    "toy/tree.py": {"toy.train", "toy.step", "toy.loss", "toy.sae", "toy.metrics", "toy.io", "toy.lm"},
    "toy/compare.py": WORLD | TRAINER,
    **{file: {"toy.train", "toy.grid", "toy.step", "toy.upkeep", "toy.loss"} for file in sorted(LM)},
    "toy/metrics.py": (WORLD | TRAINER | {"toy.sae"}) - {"toy.tree", "toy.dictionary"},
    "toy/evaluate.py": {"toy.train", "toy.step", "toy.loss", "toy.io", "toy.lm"},
}
MAY_OPEN = {"toy/io.py", "toy/provenance.py", "toy/store.py", "toy/shards.py", "toy/matrix.py"}
MAY_OPEN |= {"toy/files.py", "toy/json_files.py", "toy/arrays.py"}
MAY_OPEN |= {f"toy/lm/{name}.py" for name in ("text", "tokenizer_json", "tokens", "torch_file", "weights")}
OPENERS = {"open", "fdopen", "mkstemp", "read_text", "write_text", "read_bytes", "write_bytes", "memmap", "savez"}
OPENERS |= {"save", "load", "loadtxt", "savetxt", "fromfile", "tofile", "load_file", "save_file", "urlopen"}


def imports(tree: ast.AST) -> set[str]:
    """Every imported name: `from toy import tree` is toy and toy.tree, `from toy.tree import Node` toy.tree, too."""
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
    tree = ast.parse("import toy.train\nfrom toy import step\nfrom toy.loss import gram\nopen('a')")
    assert within(imports(tree), MAY_NOT_IMPORT["toy/loss/tiled.py"]) == {"toy.train", "toy.step"}
    assert calls(tree) & OPENERS == {"open"}
    assert "toy.loss.gram" in imports(parsed("toy/loss/objective.py"))
    assert within(imports(parsed("toy/step.py")), {"toy.loss"})


@pytest.mark.parametrize("file", FILES)
def test_the_library_imports_no_experiment_no_plotting_and_no_command_line(file: str) -> None:
    assert not within(imports(parsed(file)), FOREIGN)


@pytest.mark.parametrize("file", MAY_NOT_IMPORT)
def test_a_layer_does_not_import_what_it_must_not_know(file: str) -> None:
    assert not within(imports(parsed(file)), MAY_NOT_IMPORT[file])


@pytest.mark.parametrize("file", [file for file in FILES if file not in MAY_OPEN])
def test_only_io_the_store_and_readers_of_models_and_texts_open_files(file: str) -> None:
    of_no_file = {"toy/loop.py": {"load", "save"}, "toy/sweep/text.py": {"load"}}  # a checkpoint's, and a YAML text's
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
    assert settings <= ({"jax.config", "jax.config.values"} if file == "toy/provenance.py" else set())
    assert not within(imports(tree), {"jax.config"})
