"""Training on the pretended device equals training on the CPU, and no step makes the host wait."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hydra import initialize_config_dir
from omegaconf import OmegaConf

import ldm
from ldm import overrides
from ldm.cli_config import CONF, compose, group_names
from ldm.training import ldm_run, vae_losses, vae_run
from tests.conditioning.encoders import write_t5
from tests.pretend.lightning import pretended_runs

EMOJI = ["data=emoji", "data.size=16", "data.n=48", "data.val_n=8", "data.objects=[cat,dog,fish]"]
DIGITS = ["data=digits", "data.size=16"]
COMMON = [
    *("logger=none", "batch_size=8", "samples.n=2", "samples.every_n_steps=0", "loader.workers=0"),
    *("trainer.max_steps=3", "trainer.accelerator=cpu", "trainer.val_check_interval=50"),
    "trainer.log_every_n_steps=50",
]
VAE = ["vae.latent_channels=2", "vae.channels=8", "vae.multipliers=[1,1]", "vae.stem=2"]
QUIET = ["trainer.max_steps=3", "samples.every_n_steps=0", "batch_size=8"]  # a fine-tuning has its own
UNET = ["network=unet", "network.channels=[8,8]", "network.heads=2", "network.attention=false"]
DIT = ["network=dit", "network.channels=16", "network.depth=2", "network.heads=2"]


def config(stage: str, runs: Path, *words: str) -> dict[str, Any]:
    """A run's config as its command line makes it."""
    _, options = overrides.prepare([*COMMON, f"runs_dir={runs}", *words], group_names())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = compose(f"train_{stage}", options)[0]
    return OmegaConf.to_container(made, resolve=True)  # type: ignore[return-value]


def trained(stage: str, runs: Path, *words: str) -> dict[str, torch.Tensor]:
    """The weights that a run of three steps leaves, an adapter's beside its base's."""
    made = config(stage, runs, "name=one", "overwrite=true", *words)
    {"vae": vae_run, "ldm": ldm_run}[stage].main(made)
    return {name: tensor.clone() for name, tensor in ldm.load(runs / stage / "one").state_dict().items()}


def agrees(monkeypatch: Any, stage: str, runs: Path, *words: str) -> None:
    wanted = trained(stage, runs, *words)
    with pretended_runs(monkeypatch) as watch:
        got = trained(stage, runs, *words)
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    _, *steps = watch.steps  # before the first, everything is moved
    assert len(steps) == 3 and not any(steps), steps


QUICK = ("critic", "text")


def cases(words: dict[str, list[str]]) -> list[Any]:
    """One kind of each stage in the quick suite; all of them take minutes."""
    marks = {name: () if name in QUICK else (pytest.mark.slow,) for name in words}
    return [pytest.param(own, id=name, marks=marks[name]) for name, own in words.items()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage one of both data sets."""
    folder = tmp_path_factory.mktemp("pretended")
    for data in (EMOJI, DIGITS):
        vae_run.main(config("vae", folder, *data, *VAE))
    return folder


STAGE_ONE = {
    "plain": [],
    "critic": ["loss.adversarial=0.5", "loss.adversarial_start=1", "loss.critic_layers=1", "loss.critic_channels=8"],
    "equivariance": ["loss.equivariance=0.9"],
}


@pytest.mark.parametrize("words", cases(STAGE_ONE))
def test_stage_one(runs, monkeypatch, words):
    agrees(monkeypatch, "vae", runs, *EMOJI, *VAE, *words)


STAGE_TWO = {
    "text": UNET,
    "dit": DIT,
    "map": [*UNET, "conditioner=map"],
    "inpaint": [*UNET, "conditioner=inpaint"],
    "low_res": [*UNET, "conditioner=low_res"],
    "online": [*UNET, "latents=online"],
    "muon": [*UNET, "optimizer.name=muon"],
}


@pytest.mark.parametrize("words", cases(STAGE_TWO))
def test_stage_two(runs, monkeypatch, words):
    agrees(monkeypatch, "ldm", runs, "first_stage=emoji", *EMOJI, *words)


FINETUNING = {
    "lora": ["finetune=lora", "rank=2"],
    "full": ["finetune=full"],
    "word": ["finetune=textual_inversion", "word=<mine>"],
    "canny": ["finetune=controlnet", "control=canny"],
    "control map": ["finetune=controlnet", "control=map"],
}


@pytest.mark.parametrize("words", cases(FINETUNING))
def test_finetuning(runs, monkeypatch, words):
    if not (runs / "ldm" / "base").is_dir():
        ldm_run.main(config("ldm", runs, *EMOJI, *UNET, "name=base"))
    agrees(monkeypatch, "ldm", runs, "base=base", *EMOJI, *QUIET, *words)


@pytest.mark.slow
def test_frozen_text(runs, monkeypatch, tmp_path):
    encoder = write_t5(tmp_path / "t5")
    frozen = ["conditioner=frozen_text", f"conditioner.text.path={encoder}", "conditioner.text.tokenizer=byt5"]
    agrees(monkeypatch, "ldm", runs, *EMOJI, *UNET, *frozen)


@pytest.mark.slow
def test_image_embedding(runs, monkeypatch, tmp_path):
    weights = tmp_path / "net.pt"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), weights)
    image = ["conditioner=image", "conditioner.image.encoder=resnet18", f"conditioner.image.weights={weights}"]
    agrees(monkeypatch, "ldm", runs, *EMOJI, *UNET, *image, "conditioner.image.image_size=32")


@pytest.mark.slow
def test_lpips(runs, monkeypatch):
    class Stub(torch.nn.Module):
        """Squared differences of random features."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.features = torch.nn.Conv2d(3, 4, 3)

        def forward(self, a, b):
            return (self.features(a) - self.features(b)).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(vae_losses, "lpips", lambda *_: Stub().requires_grad_(False))
    agrees(monkeypatch, "vae", runs, *EMOJI, *VAE, "loss.perceptual=0.5", "loss.perceptual_net=vgg")


@pytest.mark.slow
def test_labels(runs, monkeypatch):
    agrees(monkeypatch, "ldm", runs, *DIGITS, *UNET)
