"""Shapes on grey as a tiny data set, and a feature network for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import ldm
from ldm.conditioning import ClassLabel, Conditioner
from ldm.data import Digits
from ldm.data.storage.table import Table
from ldm.diffusion import EDM, Denoiser
from ldm.evaluation.measures.classifier import own_features
from ldm.evaluation.measures.features import Features
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import AutoencoderKL, UNet

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits(cache: Path) -> tuple[Table, Table]:
    return Digits(size=16).tables(cache / "data")


@pytest.fixture(scope="session")
def own(digits: tuple[Table, Table]) -> Features:
    """Features of a classifier of digits, trained for a few seconds."""
    made = own_features(digits[0], steps=60)
    assert made is not None
    return made


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ldm/tiny and runs/vae/tiny, of random weights, as trained on digits; runs/ldm/other as on digits of 8x8."""
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for name, size in (("tiny", 16), ("other", 8)):
        preprocess = Preprocess(channels=1, height=size, width=size, resize="stretch", background=[0])
        vae: Any = AutoencoderKL(1, 2, channels=8, multipliers=(1, 2))
        conditioner = Conditioner({"label": ClassLabel(10, [f"n{i}" for i in range(10)], dim=8)})
        network = UNet(2, channels=8, multipliers=(1,), context_dim=8, vector_dim=8, heads=2)
        torch.nn.init.normal_(network.conv_out.weight, std=0.1)
        sampling = {"steps": 2, "sampler": "euler", "guidance": 2.0}
        model = LatentDiffusion(vae, Denoiser(network, EDM()), conditioner, preprocess, sampling)
        vae.preprocess = preprocess
        for stage, made in (("ldm", model), ("vae", vae)):
            folder = root / stage / name
            ldm.save(made, folder / "model")
            (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"class": "Digits", "size": size}}))
    return root


@pytest.fixture
def config(runs: Path, cache: Path):
    """A function that gives the shipped YAML with changes, small and with features that need no package."""

    def make(**changes: Any) -> dict[str, Any]:
        defaults = yaml.safe_load((CONF / "evaluate.yaml").read_text())
        small = {"n": 12, "seeds": 2, "features": "random", "reference_n": 60, "lpips": "off", "device": "cpu"}
        places = {"run": "tiny", "runs_dir": str(runs), "cache_dir": str(cache)}
        return defaults | places | small | changes

    return make


def tensor_of(table: Table, n: int) -> torch.Tensor:
    """The first n images, (n, C, H, W) uint8."""
    return torch.from_numpy(np.array(table.images[:n]))
