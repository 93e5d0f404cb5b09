"""Tiny runs: digits of 8x8, networks of 8 channels, a handful of steps."""

import contextlib
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from ldm.commands import train_ldm, train_vae
from ldm.config import overrides
from ldm.config.compose import CONF, compose, group_names

COMMON = [
    "data=digits",
    "data.size=8",
    "logger=none",
    "batch_size=16",
    "samples.n=2",
    "trainer.accelerator=cpu",
    "trainer.val_check_interval=4",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "optimizer.warmup_steps=3",
]
VAE = [*COMMON, "vae.latent_channels=2", "vae.channels=8", "vae.multipliers=[1,1]", "vae.stem=1"]
LDM = [
    *COMMON,
    "network=unet",
    "network.channels=[8,8]",
    "network.heads=2",
    "network.attention=false",
    "diffusion.sampling.steps=2",
]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def config():
    """A function from a script and its words to the plain dict that its `main` gets."""

    def make(script: str, runs: Path, *words: str) -> dict:
        base = {"train_vae": VAE, "train_ldm": LDM}[script]
        _, options = overrides.prepare([*base, f"runs_dir={runs}", *words], group_names())
        with initialize_config_dir(str(CONF), version_base="1.3"):  # Hydra is global: not longer than needed
            return OmegaConf.to_container(compose(script, options)[0], resolve=True)

    return make


@pytest.fixture(scope="session")
def train(config):
    """A function that trains a stage in `runs` and gives its run's folder."""

    def run(stage: str, runs: Path, *words: str) -> Path:
        made = config(f"train_{stage}", runs, *words)
        {"vae": train_vae, "ldm": train_ldm}[stage].main(made)
        return runs / stage / (made["name"] or "digits")

    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory, train) -> Path:
    """A runs folder with stage one of the digits, what that printed (said.txt), and a stage two of 6 steps on it."""
    folder = tmp_path_factory.mktemp("trained") / "runs"
    folder.mkdir()
    with (folder / "said.txt").open("w") as output, contextlib.redirect_stdout(output):
        train("vae", folder, "trainer.max_steps=8")
    train("ldm", folder, "trainer.max_steps=6", "checkpoint.every_n_steps=2", "optimizer.lr=0.01")
    return folder
