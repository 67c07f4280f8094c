"""The option `--tree`: the name of a tree or of a file."""

import difflib
from functools import cached_property
from pathlib import Path

from tyro.constructors import PrimitiveConstructorSpec

from experiments.common.exits import say
from toy.checks import quoted
from toy.features.named import TREES
from toy.features.node import Node
from toy.features.tree import Tree, build_tree
from toy.io import read_tree


class TreeOption:
    """A tree by its name or its file, which is read once, when the tree is first asked for: it may be a pipe."""

    def __init__(self, name: str, root: Node | None = None) -> None:
        self.name = name
        if root is not None:
            self.root = root

    @cached_property
    def root(self) -> Node:
        """Prints what the reader noted. Raises: `TreeError` naming the file; ValueError with the right spelling."""
        if self.name in TREES:
            return TREES[self.name]()
        near = difflib.get_close_matches(self.name.lower(), TREES, n=1)
        if near and not Path(self.name).exists():
            raise ValueError(f"--tree {quoted(self.name)}: there is no such file; did you mean {near[0]}?")
        root, notes = read_tree(Path(self.name))
        for note in notes:
            say(f"{self.name}: {note}")
        return root

    @cached_property
    def tree(self) -> Tree:
        return build_tree(self.root)

    def __str__(self) -> str:
        return self.name


TREE_OPTION = PrimitiveConstructorSpec(
    nargs=1,
    metavar="NAME|FILE",
    instance_from_str=lambda words: TreeOption(words[0]),
    is_instance=lambda value: isinstance(value, TreeOption),
    str_from_instance=lambda tree: [tree.name],
)
