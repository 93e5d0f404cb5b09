"""Settings of a process for the device that it computes on."""

import pytest
import torch

from ldm.common.devices import fast_products


@pytest.mark.parametrize(("device", "wanted"), [("cuda", ["high"]), ("cuda:1", ["high"]), ("cpu", []), ("mps", [])])
def test_products_in_float32_are_fast_on_cuda_alone(monkeypatch, device, wanted):
    set_to: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    fast_products(device)
    assert set_to == wanted
