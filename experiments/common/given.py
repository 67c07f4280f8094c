"""A tree that has been read, which a configuration carries in place of the name of its file."""

from pathlib import Path
from typing import Any

from toy.features.named import TREES
from toy.features.node import Node, walk
from toy.io import read_tree


class GivenTree:
    """A tree that has been read, in place of its file: the file may change while the experiment runs.

    Two are equal where the trees are, whatever their names. `notes` say in one line each how the tree was read.
    """

    def __init__(self, name: str, root: Node, notes: tuple[str, ...] = ()) -> None:
        self.name, self.root, self.notes = name, root, notes
        self._content = tuple((parent, *_own(node)) for _, parent, node in walk(root))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenTree) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GivenTree":
        return self  # `dataclasses.asdict` would copy every node

    def __str__(self) -> str:
        return self.name


def _own(node: Node) -> tuple[Any, ...]:
    """The fields of a node without its children, whose comparison would recurse as deep as the tree."""
    return tuple(value for name, value in vars(node).items() if name != "children")


def read_given(tree: Path) -> GivenTree:
    """A named tree, or that of a file. Raises: `TreeError` naming the file."""
    name = str(tree)
    return GivenTree(name, TREES[name]()) if name in TREES else GivenTree(name, *read_tree(tree))
