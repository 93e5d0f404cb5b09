"""Runs made by former code (3a67e7e, before modules moved into rooms) load, generate and continue as they did then."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from ldm.commands import cli
from tests.reliability.former.make import ON, RUNS, generated

FORMER = Path(__file__).parent / "former"
EXPECTED = np.load(FORMER / "expected.npz")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("former") / "runs"
    with tarfile.open(FORMER / "runs.tar.xz") as file:
        file.extractall(folder, filter="data")
    return folder


def difference(runs: Path, name: str, expected: str) -> float:
    return float(np.abs(generated(runs, name) - EXPECTED[expected]).max())


def test_they_generate_what_they_did_and_go_on_as_they_would_have(runs: Path) -> None:
    for name in (*RUNS, "net"):
        assert difference(runs, name, name) < 1e-5, name
    for name, (script, words) in RUNS.items():
        cli.run(script, [*ON, *words, f"runs_dir={runs}"])
        assert difference(runs, name, f"{name} after") < 1e-5, name
        assert difference(runs, name, name) > 1e-3, f"{name} wasn't trained on"
