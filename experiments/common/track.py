"""Histories of runs for programs that show curves: TensorBoard, Weights & Biases, and Trackio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from toy.checks import optional

Tracker = Literal["tensorboard", "wandb", "trackio"]
_PACKAGES: dict[str, str] = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
PROJECT = "matryoshka-toy"


def package(tracker: Tracker) -> Any:
    """The package of a tracker. Raises: ValueError naming the extra that installs it."""
    return optional(_PACKAGES[tracker], tracker, f"--track {tracker}")


def track(tracker: Tracker, folder: Path, name: str, facts: dict[str, Any], rows: Sequence[dict[str, float]]) -> None:
    """Give a tracker the rows of a history, of which each has its `step`. TensorBoard's files go to `folder`."""
    module = package(tracker)
    if tracker == "tensorboard":
        with module.SummaryWriter(str(folder / "tensorboard" / name)) as writer:
            for row in rows:
                for key, value in row.items():
                    writer.add_scalar(key, value, int(row["step"]))
        return
    run = module.init(project=PROJECT, name=name, config=facts)
    for row in rows:
        run.log(row, step=int(row["step"]))
    run.finish()
