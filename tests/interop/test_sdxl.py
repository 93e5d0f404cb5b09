"""Stable Diffusion XL: its parts at full size, whole pipelines in and out, LoRA and ControlNet."""

import pytest
import torch

from ldm.common.registry import build
from ldm.interop.parts import unet
from tests.interop import sdxl
from tests.interop.models import diffusers


def names_and_shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.slow
def test_the_unet_at_full_size_has_diffusers_names_and_shapes():
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**sdxl.UNET)
        ours = build(unet.from_diffusers(dict(theirs.config)))
    assert names_and_shapes(ours.state_dict()) == names_and_shapes(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == 2_567_463_684
    written = unet.to_diffusers(ours, 128)
    with torch.device("meta"):
        again = diffusers.UNet2DConditionModel.from_config(written)
    assert names_and_shapes(again.state_dict()) == names_and_shapes(theirs.state_dict())
