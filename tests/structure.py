"""How large the project is and how far it is from a command to the loss: `python -m tests.structure` prints it."""

import ast
import contextlib
import io
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (  # of `toy`, from the bottom: a module imports from its own entry and from lines above it
    ("checks", "compiled", "decompositions", "keys"),
    ("files",),
    ("sae",),
    ("inclusion", "features"),
    ("prefixes",),
    ("data", "loss", "eval"),
    ("methods",),
    ("training",),
    ("interop", "lm", "theory"),
    ("io",),
    ("__init__",),
)
TINY = {
    "absorption": ("--n-seeds", "2", "--n-steps", "20", "--n-topk-seeds", "0"),
    "tinystories": (
        *("--n-stories", "500", "--context", "48", "--vocab-size", "330", "--n-layers", "1", "--d-model", "16"),
        *("--lm-steps", "3", "--n-latents", "24", "--reference-widths", "8", "16", "--target-l0", "2", "4"),
        *("--n-steps", "6", "--batch-size", "32", "--n-seeds", "2", "--locations", "mlp_out"),
    ),
}


def sources(*folders: str) -> dict[str, ast.Module]:
    """The parsed modules of some folders, by dotted name."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return {dotted(file): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported name: `from toy.sae import SAE` is `toy.sae` and `toy.sae.SAE`. Relative ones are refused."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import hides where a name is from"
            yield from (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names))


def layer(entry: str) -> int:
    """The place of an entry of `toy` in `LAYERS`. Raises: StopIteration if it is not there."""
    return next(i for i, entries in enumerate(LAYERS) if entry in entries)


def upward_imports() -> list[str]:
    """`importer -> imported` of each import in `toy` of another entry that does not stand below the importer."""
    found = set()
    modules = sources("toy")
    for name, tree in modules.items():
        own = name.split(".")[1]
        for imported in imports(tree):
            other = imported.split(".")[1] if imported in modules else own
            if other != own and layer(other) >= layer(own):
                found.add(f"{name} -> {imported}")
    return sorted(found)


def function_lengths() -> dict[str, int]:
    """Lines of each function of `toy` and `experiments`, its docstring included."""
    return {
        f"{module}.{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module, tree in sources("toy", "experiments").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def n_lines(folder: str) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in (ROOT / folder).rglob("*.py"))


def n_files_at_top(folder: str) -> int:
    """Modules that stand in the folder itself, `__init__.py` not counted."""
    return sum(file.name != "__init__.py" for file in (ROOT / folder).glob("*.py"))


class Reached(BaseException):
    """The loss is being traced, which is all that is wanted of a command."""


def call_path(command: str) -> list[str]:
    """The functions of this project, `file:function`, between `python -m experiments.COMMAND` and the loss.

    The command is run in this process, at tiny size, until a training step calls the loss of its method.
    """

    frames: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        frame = sys._getframe(1)
        while frame is not None:
            file, function = Path(frame.f_code.co_filename), frame.f_code.co_qualname.partition(".<locals>")[0]
            if function != "<module>" and any(file.is_relative_to(ROOT / part) for part in ("toy", "experiments")):
                name = f"{file.relative_to(ROOT)}:{function}"
                if name not in frames:  # what is defined inside a function is part of it
                    frames.insert(0, name)
            frame = frame.f_back
        raise Reached

    from toy.methods import Standard  # the command sets JAX up before anything else of the project is imported

    own_loss, arguments = Standard.loss, sys.argv
    Standard.loss = stop  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            cache = ("--cache", f"{folder}/cache") if command == "tinystories" else ()
            sys.argv = [command, *TINY[command], *cache, "--out", f"{folder}/out"]
            with contextlib.suppress(Reached):
                runpy.run_module(f"experiments.{command}", run_name="__main__", alter_sys=True)
    finally:
        Standard.loss, sys.argv = own_loss, arguments  # type: ignore[method-assign]
    assert frames, f"{command} did not reach the loss"
    return frames


def main() -> None:
    for command in TINY:
        frames = call_path(command)
        print(f"{command}: {len(frames)} functions from the command to the loss")
        print("\n".join(f"  {frame}" for frame in frames))
    for folder, most in (("toy", 8), ("experiments", 18)):
        print(f"{folder}/: {n_files_at_top(folder)} files at the top (at most {most}), {n_lines(folder):,} lines")
    lengths = function_lengths()
    longest = max(lengths, key=lambda name: lengths[name])
    print(f"functions: median {median(lengths.values()):.0f} lines, longest {lengths[longest]} ({longest})")
    print("\n".join(["imports that run upwards:", *(upward_imports() or ["none"])]))


if __name__ == "__main__":
    main()
