"""Models trained with augmentation are exported without its condition, and compute the same."""

import pytest
import torch

from ldm.conditioning import Augmentation, ClassLabel, Conditioner
from ldm.diffusion import Denoiser, Flow
from ldm.images import Preprocess
from ldm.interop.export import export
from ldm.interop.exporting.augmentation import without_augmentation
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import DiT, Identity, UNet
from tests.interop.models import randomised


def model_of(kind: str, labelled: bool) -> LatentDiffusion:
    parts = {"label": ClassLabel(3), "augment": Augmentation()} if labelled else {"augment": Augmentation()}
    conditioner = Conditioner(parts)
    sizes = {"in_channels": 3, "vector_dim": conditioner.vector_dim, "context_dim": conditioner.token_dim}
    network = UNet(**sizes, channels=[8, 8], heads=2) if kind == "unet" else DiT(**sizes, channels=8, depth=1, heads=2)
    model = LatentDiffusion(Identity(3), Denoiser(network, Flow()), conditioner, Preprocess(3, 8, 8), {"steps": 2})
    return randomised(model)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_without_its_condition_it_generates_the_same(kind, labelled):
    model = model_of(kind, labelled)
    bare = without_augmentation(model)
    wanted, found = (one.draw({"label": [1]} if labelled else {}, 2, seed=1) for one in (model, bare))
    assert list(bare.conditioner.parts) == (["label"] if labelled else [])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert "augment" in model.conditioner.parts and without_augmentation(bare) is bare


def test_it_is_exported_to_diffusers(tmp_path):
    export(model_of("unet", labelled=False), tmp_path / "out")
    assert (tmp_path / "out" / "unet" / "config.json").is_file() and not (tmp_path / "out" / "conditioner").exists()
