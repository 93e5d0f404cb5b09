import contextlib
from pathlib import Path

import pytest
import torch
from hydra.core.plugins import Plugins

from ldm.training import ldm_run, vae_run  # noqa: F401
from tests.reliability.runs import train


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def warm():
    """Forked processes find the plugins of Hydra, as its modules, where this one has them already."""
    Plugins.instance()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def stage_one(tmp_path_factory) -> Path:
    """A finished first stage that stage two may name."""
    folder = tmp_path_factory.mktemp("stage-one")
    with contextlib.chdir(folder):
        train("vae", "trainer.max_steps=2")
    return folder / "runs" / "vae" / "squares"
