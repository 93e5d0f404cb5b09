"""Evaluation on the pretended device gives the figures that it gives on the CPU."""

from pathlib import Path

import pytest

from ldm.commands import evaluate as evaluation
from tests.pretend.device import DEVICE, pretended


@pytest.mark.parametrize("stage", ["vae", "ldm"])
def test_figures_are_those_of_the_cpu(config, tmp_path: Path, monkeypatch, stage: str) -> None:
    small = {"stage": stage, "n": 8, "seeds": 1, "batch_size": 16}
    wanted = evaluation.main(config(out=str(tmp_path / "cpu"), **small))
    with pretended(monkeypatch):
        got = evaluation.main(config(out=str(tmp_path / DEVICE), device=DEVICE, **small))
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, (int, float)):
            assert got[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
