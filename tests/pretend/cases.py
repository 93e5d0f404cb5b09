"""The runs that every device has to train alike: their command lines, and what they leave."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

import ldm
from ldm.commands import train_ldm, train_vae
from ldm.config import overrides
from ldm.config.compose import CONF, compose, group_names

EMOJI = ["data=emoji", "data.size=16", "data.n=48", "data.val_n=8", "data.objects=[cat,dog,fish]"]
DIGITS = ["data=digits", "data.size=16"]
COMMON = [
    *("logger=none", "batch_size=8", "samples.n=2", "samples.every_n_steps=0", "loader.workers=0"),
    *("trainer.max_steps=3", "trainer.val_check_interval=50", "trainer.log_every_n_steps=50"),
]
VAE = ["vae.latent_channels=2", "vae.channels=8", "vae.multipliers=[1,1]", "vae.stem=2"]
QUIET = ["trainer.max_steps=3", "samples.every_n_steps=0", "batch_size=8"]  # a fine-tuning has its own
STEPS = "diffusion.sampling.steps=2"  # of the samples at the end
UNET = ["network=unet", "network.channels=[8,8]", "network.heads=2", "network.attention=false", STEPS]
DIT = ["network=dit", "network.channels=16", "network.depth=2", "network.heads=2", STEPS]

STAGE_ONE = {
    "plain": [],
    "critic": ["loss.adversarial=0.5", "loss.adversarial_start=1", "loss.critic_layers=1", "loss.critic_channels=8"],
    "equivariance": ["loss.equivariance=0.9"],
}
STAGE_TWO = {
    "text": UNET,
    "dit": DIT,
    "map": [*UNET, "conditioner=map"],
    "inpaint": [*UNET, "conditioner=inpaint"],
    "low_res": [*UNET, "conditioner=low_res"],
    "online": [*UNET, "latents=online"],
    "muon": [*UNET, "optimizer.name=muon"],
}
FINETUNING = {
    "lora": ["finetune=lora", "rank=2"],
    "full": ["finetune=full"],
    "word": ["finetune=textual_inversion", "word=<mine>"],
    "distill": ["finetune=distill", "levels=4", "segments=2", "guidance=[1,4]"],
    "canny": ["finetune=controlnet", "control=canny"],
    "control map": ["finetune=controlnet", "control=map"],
}


def config(stage: str, runs: Path, *words: str, accelerator: str = "cpu") -> dict[str, Any]:
    """A run's config as its command line makes it."""
    where = [f"trainer.accelerator={accelerator}", f"runs_dir={runs}"]
    _, options = overrides.prepare([*COMMON, *where, *words], group_names())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = compose(f"train_{stage}", options)[0]
    return OmegaConf.to_container(made, resolve=True)  # type: ignore[return-value]


def train(stage: str, runs: Path, *words: str, accelerator: str = "cpu") -> Path:
    """The folder of a run of three steps."""
    made = config(stage, runs, "name=one", "overwrite=true", *words, accelerator=accelerator)
    return {"vae": train_vae, "ldm": train_ldm}[stage].main(made)


def trained(stage: str, runs: Path, *words: str) -> dict[str, torch.Tensor]:
    """The weights that a run of three steps leaves, an adapter's beside its base's."""
    return {name: tensor.clone() for name, tensor in ldm.load(train(stage, runs, *words)).state_dict().items()}


def stage_one(runs: Path, *data: list[str]) -> Path:
    """Stage one of data sets, in `runs`."""
    for words in data:
        train_vae.main(config("vae", runs, *words, *VAE))
    return runs


def base(runs: Path) -> None:
    """What fine-tunings continue from, once."""
    if not (runs / "ldm" / "base").is_dir():
        train_ldm.main(config("ldm", runs, *EMOJI, *UNET, "name=base"))


def marked(words: dict[str, list[str]], quick: tuple[str, ...]) -> list[Any]:
    """Cases of which those that aren't named as `quick` are slow."""
    marks = {name: () if name in quick else (pytest.mark.slow,) for name in words}
    return [pytest.param(own, id=name, marks=marks[name]) for name, own in words.items()]
