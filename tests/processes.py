"""Scripts of this folder, run in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def start(script: str, *arguments: object, **environment: object) -> subprocess.Popen[str]:
    """A script of this folder in a process that imports this checkout."""
    settings = {"PYTHONPATH": HERE.parent, "JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=os.environ | {name: str(value) for name, value in settings.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes: list[subprocess.Popen[str]], timeout: float) -> None:
    """Wait for all of them; none outlives this."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=timeout)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
            process.wait()


def killed(what: str, folder: Path, at: int, **environment: object) -> str:
    """Returns what a job of killed.py prints until it kills itself at the given call of the code that keeps files."""
    process = start("killed.py", what, folder, KILL_AT=at, **environment)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output
    return output
