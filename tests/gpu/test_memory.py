"""Blocks whose activations are computed again take less memory, in the forward and backward pass together."""

import pytest
import torch

from ldm.networks import AutoencoderKL, Cond, DiT, UNet
from ldm.training.trainer.speed import prepare
from tests.gpu.measures import peak

pytestmark = pytest.mark.gpu

NETWORKS = {
    "unet": lambda: UNet(4, channels=[64, 64], heads=4, context_dim=16),
    "dit": lambda: DiT(4, channels=64, depth=6, heads=4, context_dim=16),
    "autoencoder": lambda: AutoencoderKL(3, 4, channels=32, multipliers=(1, 2)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradient_checkpointing(kind, gpu):
    x = torch.randn(4, 3 if kind == "autoencoder" else 4, 16, 16, device=gpu)
    cond, t = Cond(tokens=torch.randn(4, 5, 16, device=gpu)), torch.rand(4, device=gpu)
    found = {}
    for checkpointing in (False, True):
        network = NETWORKS[kind]().to(gpu)
        prepare(network, checkpointing=checkpointing)

        def step(network=network):
            out = network(x)[0] if kind == "autoencoder" else network(x, t, cond)
            out.square().mean().backward()
            network.zero_grad()

        found[checkpointing] = peak(gpu, step)
    assert 0 < found[True] < 0.8 * found[False]
