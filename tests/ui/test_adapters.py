"""LoRAs and ControlNets on the page generate the same as when loaded by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.common.errors import UserError
from ldm.images.hints import Canny
from ldm.networks import ControlNet
from ldm.ui.generating.image_generator import ImageGenerator
from ldm.ui.generating.models import Models
from ldm.ui.generating.page_store import PageStore
from ldm.ui.generating.settings import Settings


def noisy(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return module


@pytest.fixture
def generator(runs: Path, tmp_path: Path) -> ImageGenerator:
    return ImageGenerator(Models(runs, "tiny"), PageStore(tmp_path / "app"))


def as_run(adapter: torch.nn.Module, runs: Path, name: str) -> Path:
    folder = runs / "ldm" / name
    if not folder.exists():
        ldm.save(adapter, folder / "model")
        (folder / "config.yaml").write_text("{}")
    return folder


def pixels_of(generator: ImageGenerator, settings: Settings) -> np.ndarray:
    (*_, results) = generator.generate(settings)
    return np.asarray(Image.open(results[0].path))


def test_a_lora_changes_as_much_as_its_scale(generator: ImageGenerator, runs: Path) -> None:
    pytest.importorskip("peft")
    from ldm.adapters import lora

    model = generator.models.get("tiny")
    other = ldm.load(runs / "ldm" / "tiny")
    lora.start(other, "x", rank=2, alpha=2.0, wanted="all", text_encoder=False, dropout=0.0)
    folder = as_run(noisy(lora.trained(other, "x", "word", {})), runs, "style")
    assert "style" not in generator.models.names() and generator.models.adapters() == (["style"], [])
    base = Settings("tiny", prompt="a cat", n=1)
    plain, zero, full = (
        pixels_of(generator, Settings("tiny", prompt="a cat", n=1, loras=loras))
        for loras in ((), (("style", 0.0),), (("style", 1.0),))
    )
    assert np.array_equal(plain, zero) and not np.array_equal(plain, full)
    by_hand = ldm.load(runs / "ldm" / "tiny")
    by_hand.load_lora(folder, 1.0)
    assert np.array_equal(full, np.asarray(by_hand("a cat", n=1)[0]))
    assert np.array_equal(pixels_of(generator, base), plain), "the base is left as it was"
    assert generator.models.get("tiny") is model
    with pytest.raises(UserError, match="no LoRA 'styl'"):
        pixels_of(generator, Settings("tiny", prompt="a cat", n=1, loras=(("styl", 1.0),)))


def test_a_controlnet_follows_its_control_image_within_its_range(
    generator: ImageGenerator, runs: Path, tmp_path: Path
) -> None:
    from ldm.adapters import Control

    model = generator.models.get("tiny")
    net = noisy(ControlNet(model.denoiser.network, Canny().channels, 2))
    folder = as_run(Control(net, Canny(), {}), runs, "edges")
    photo = Image.new("RGB", (16, 16), "black")
    photo.paste((255, 255, 255), (4, 4, 12, 12))
    name = generator.store.keep_input(photo)

    def made(weight: float, start: float = 0.0, end: float = 1.0) -> np.ndarray:
        return pixels_of(
            generator, Settings("tiny", prompt="a cat", n=1, controlnets=(("edges", weight, start, end, name),))
        )

    plain = pixels_of(generator, Settings("tiny", prompt="a cat", n=1))
    by_hand = ldm.load(runs / "ldm" / "tiny")
    by_hand.load_controlnet(folder, 1.0, name="edges")
    expected = by_hand(
        "a cat", n=1, control_from={"edges": photo}, control_scale=1.0, control_start=0.0, control_end=0.5
    )
    assert np.array_equal(made(0.0), plain)
    assert not np.array_equal(made(1.0), plain)
    assert np.array_equal(made(1.0, 0.0, 0.5), np.asarray(expected[0]))
