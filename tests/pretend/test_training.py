"""Training on the pretended device equals training on the CPU, and no step makes the host wait."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from ldm.training import vae_losses
from tests.conditioning.encoders import write_t5
from tests.pretend.autocast import CASTS
from tests.pretend.cases import (
    DIGITS,
    EMOJI,
    FINETUNING,
    QUIET,
    STAGE_ONE,
    STAGE_TWO,
    UNET,
    VAE,
    base,
    marked,
    stage_one,
    trained,
)
from tests.pretend.lightning import pretended_runs

QUICK = ("critic", "text")  # one kind of each stage in the quick suite; all of them take minutes


def agrees(
    monkeypatch: Any, stage: str, runs: Path, *words: str, batches: int = 3, close: float = 1e-5
) -> dict[str, torch.Tensor]:
    """Trains on the CPU and on the pretended device for three steps of `batches` in all; returns the latter's weights,
    which are `close`, and for none of which the host waited."""
    wanted = trained(stage, runs, *words)
    with pretended_runs(monkeypatch) as watch:
        got = trained(stage, runs, *words)
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=close, msg=name)
    _, *steps = watch.steps  # before the first, everything is moved
    assert len(steps) == batches and not any(steps), steps
    return got


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage one of the emoji."""
    return stage_one(tmp_path_factory.mktemp("pretended"), EMOJI)


@pytest.mark.parametrize("words", marked(STAGE_ONE, QUICK))
def test_stage_one(runs, monkeypatch, words):
    agrees(monkeypatch, "vae", runs, *EMOJI, *VAE, *words)


@pytest.mark.parametrize("words", marked(STAGE_TWO, QUICK))
def test_stage_two(runs, monkeypatch, words):
    agrees(monkeypatch, "ldm", runs, "first_stage=emoji", *EMOJI, *words)


@pytest.mark.slow
def test_accumulation(runs, monkeypatch):
    agrees(monkeypatch, "ldm", runs, *EMOJI, *UNET, "trainer.accumulate_grad_batches=2", batches=6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["critic", "text"])
def test_bfloat16(runs, monkeypatch, kind):
    """What is cast where differs between CPUs and GPUs, so weights agree to the size of a step."""
    stage, words = ("vae", [*VAE, *STAGE_ONE[kind]]) if kind in STAGE_ONE else ("ldm", STAGE_TWO[kind])
    plain = agrees(monkeypatch, stage, runs, *EMOJI, *words)
    CASTS.clear()
    half = agrees(monkeypatch, stage, runs, *EMOJI, *words, "trainer.precision=bf16-mixed", close=2e-2)
    assert CASTS[torch.bfloat16] > 20 and CASTS[torch.float32] > 0
    assert any(not torch.equal(plain[name], tensor) for name, tensor in half.items())


@pytest.mark.parametrize("words", marked(FINETUNING, QUICK))
def test_finetuning(runs, monkeypatch, words):
    base(runs)
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
    stage_one(runs, DIGITS)
    agrees(monkeypatch, "ldm", runs, *DIGITS, *UNET)
