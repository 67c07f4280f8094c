"""A Ray cluster that a sweep starts itself: nobody else can reach it, or send it work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.sweeps.engines import _check_own_cluster

PROGRAM = """
import json, os, re
from pathlib import Path
from experiments.sweeps.engines import RayEngine

def owners():  # of sockets, among processes that know this cluster's token
    token, found = os.environ["RAY_AUTH_TOKEN"].encode(), set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name == str(os.getpid()) or token in (process / "environ").read_bytes():
                found |= {os.readlink(file) for file in (process / "fd").iterdir()}
        except OSError:
            pass  # it has ended, or a file of it is closed
    return found

def listening():
    own = owners()
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own]

answers = RayEngine().run(lambda task: 2 * task, iter(range(3)))
found = [next(answers)]
told = listening()
found += answers
import ray
print(json.dumps([sorted(found), told, os.environ["RAY_AUTH_MODE"], ray.get(ray.put(1))]))
ray.shutdown()
"""
LOCALHOST = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}  # 127.0.0.1, ::1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are listed as Linux does it")
def test_a_cluster_that_is_started_here_listens_to_this_machine_alone(tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    printed, errors = tmp_path / "printed", tmp_path / "errors"
    with printed.open("w") as out, errors.open("w") as err:  # Ray's own processes would keep pipes open
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, stdout=out, stderr=err, check=False, timeout=240)
    assert done.returncode == 0, errors.read_text()
    answers, listening, mode, one = json.loads(printed.read_text().splitlines()[-1])
    assert answers == [[0, 0], [1, 2], [2, 4]]
    assert len(listening) > 3
    assert set(listening) <= LOCALHOST
    assert (mode, one) == ("token", 1)
    assert not (tmp_path / ".ray").exists()  # the token is nowhere but in memory


@pytest.mark.parametrize(
    ("version", "address", "message"),
    [
        ("2.51.1", "127.0.0.1", r"^the Ray engine: Ray 2\.51\.1 asks nobody for a token: install 2\.52 or later$"),
        ("2.60.0", "192.0.2.2", "^the Ray engine: Ray was imported before, and so listens to other machines"),
        ("3.0.0.dev0", "127.0.0.1", None),
    ],
)
def test_a_cluster_that_others_could_use_is_shut_down(version: str, address: str, message: str | None) -> None:
    closed: list[Any] = []
    nodes = [{"NodeManagerAddress": address}]
    ray = SimpleNamespace(__version__=version, nodes=lambda: nodes, shutdown=lambda: closed.append(True))
    if message is None:
        _check_own_cluster(ray)
        assert not closed
        return
    with pytest.raises(ValueError, match=message):
        _check_own_cluster(ray)
    assert closed
