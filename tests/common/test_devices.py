"""What a command sets for the device that it computes on."""

import pytest
import torch

from ldm.common.devices import fast_products


@pytest.mark.parametrize(("device", "wanted"), [("cuda", ["high"]), ("cuda:1", ["high"]), ("cpu", []), ("mps", [])])
def test_products_in_float32_are_fast_on_cuda_alone(monkeypatch, device, wanted):
    said: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    fast_products(device)
    assert said == wanted
