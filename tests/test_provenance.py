"""Which code a digest is of."""

from pathlib import Path

import pytest

from toy import provenance
from toy.provenance import code_digest

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
