"""Who may import whom, who may open files, and how far a command is from the loss, read from the source."""

import ast
import subprocess
import sys
import tomllib
from statistics import median

import pytest
from structure import ROOT, function_lengths, imports, n_files_at_top, sources, upward_imports

LIBRARY, COMMANDS = sources("toy"), sources("experiments")
OPENERS = {"open", "fdopen", "mkstemp", "read_text", "write_text", "read_bytes", "write_bytes", "memmap", "savez"}
OPENERS |= {"loadtxt", "savetxt", "fromfile", "tofile", "load_file", "save_file", "urlopen"}
MAY_OPEN = ("toy.io", "toy.files.", "toy.data.", "toy.lm.", "toy.training.jax_settings", "toy.methods.from_file")
MOST_FRAMES = 10  # between a command and the loss


def called(tree: ast.AST) -> set[str]:
    """The last name of everything that is called."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        f.attr if isinstance(f, ast.Attribute) else f.id for f in functions if isinstance(f, ast.Attribute | ast.Name)
    }


def importers(modules: dict[str, ast.Module], *packages: str) -> set[str]:
    return {name for name, tree in modules.items() if {part.split(".")[0] for part in imports(tree)} & {*packages}}


def test_the_library_imports_only_downwards() -> None:
    assert not upward_imports()


def test_the_library_knows_no_experiment_no_plotting_and_no_command_line() -> None:
    assert not importers(LIBRARY, "experiments", "tests", "matplotlib", "tyro", "tqdm")


def test_one_file_draws_progress() -> None:
    assert importers(COMMANDS, "tqdm") == {"experiments.common.progress"}


def test_files_are_opened_by_those_who_keep_data_and_by_readers_of_models_and_texts() -> None:
    assert not [name for name, tree in LIBRARY.items() if called(tree) & OPENERS and not name.startswith(MAY_OPEN)]


def test_the_library_neither_prints_nor_configures_jax() -> None:
    assert not [name for name, tree in LIBRARY.items() if "print" in called(tree)]
    nodes = [(name, dotted(node)) for name, tree in LIBRARY.items() for node in ast.walk(tree)]
    configured = {name for name, node in nodes if "jax.config.update" in node}
    assert configured <= {"toy.training.jax_settings"}


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute) else ""


def test_nothing_of_the_library_is_imported_inside_a_function() -> None:
    functions = [
        (name, node)
        for name, tree in LIBRARY.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not [name for name, function in functions if any(imports(function))]


def test_every_folder_with_code_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        installed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    assert {name.rpartition(".")[0] for name in (*LIBRARY, *COMMANDS)} == installed


def test_functions_are_short_and_few_files_stand_at_the_top() -> None:
    lengths = function_lengths()
    assert median(lengths.values()) <= 10
    assert max(lengths.values()) <= 60
    assert n_files_at_top("toy") <= 8
    assert n_files_at_top("experiments") <= 18


@pytest.mark.slow
def test_the_way_from_a_command_to_the_loss_is_printed() -> None:
    """In a process of its own: the import hook of the tests puts frames of its own between ours."""
    said = subprocess.run([sys.executable, "-m", "tests.structure"], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    paths = [line for line in said.stdout.splitlines() if line.endswith("functions from the command to the loss")]
    assert [line.split(":")[0] for line in paths] == ["absorption", "tinystories"]
    assert max(int(line.split()[1]) for line in paths) <= MOST_FRAMES
