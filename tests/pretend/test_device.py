"""The stand itself: it raises on a planted mix of devices, and counts planted waits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.pretend.device import DEVICE, OnDevice, moved, pretended, tick


@pytest.fixture
def waits(monkeypatch):
    with pretended(monkeypatch) as counted:
        yield counted


def on_device(*values: float) -> torch.Tensor:
    return torch.tensor([float(v) for v in values]).pin_memory().to(DEVICE, non_blocking=True)


def test_numbers_are_those_of_the_cpu_and_gradients_too(waits):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    x = torch.randn(2, 3, 8, 8)
    wanted = network(x)
    wanted.square().sum().backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    y = moved(network)(x.pin_memory().to(DEVICE, non_blocking=True))
    y.square().sum().backward()
    assert isinstance(y, OnDevice) and y.device.type == DEVICE
    assert torch.equal(y.inner, wanted)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad.inner, gradient)
    assert not waits


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
        lambda x: nn.Linear(3, 1)(x),
        lambda x: torch.ones(3)[x.long() * 0],
    ],
)
def test_a_mix_of_devices_raises(waits, mix):
    with pytest.raises(RuntimeError, match="host"):
        mix(on_device(1, 2, 3))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: int(x[0]),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x[x > 1],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.__setitem__(x > 1, x[:2].clone()),
        lambda x: torch.equal(x, x),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.long().bincount(),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.allclose(x, x),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.ones(2).to(x.device),
        lambda x: torch.ones(2).to(x.device, non_blocking=True),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.empty(3).copy_(x),
        lambda x: torch.empty(3).pin_memory().copy_(x, non_blocking=True)[0].item(),
        lambda x: x.to("cpu", non_blocking=True).sum(),
    ],
)
def test_what_waits_is_counted(waits, wait):
    x = on_device(1, 2, 3)
    waits.clear()
    wait(x)
    assert waits, "not seen"


@pytest.mark.parametrize(
    "free",
    [
        lambda x: torch.full((3,), 2.0, device=x.device) * x + 1,
        lambda x: x.masked_fill(x > 1, 0.0),
        lambda x: x.__setitem__(x > 1, 0.0),
        lambda x: x[x.long() * 0],
        lambda x: x[None, :2],
        lambda x: x.repeat_interleave(2),
        lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True) + x,
        lambda x: torch.empty(3).pin_memory().copy_(x, non_blocking=True),
        lambda x: torch.nn.utils.get_total_norm([x, x]),
        lambda x: torch.arange(3, device=x.device),
    ],
)
def test_what_does_not_wait_is_not_counted(waits, free):
    x = on_device(1, 2, 3)
    waits.clear()
    free(x)
    assert not waits


def test_a_copy_to_pinned_memory_is_free_to_read_a_step_later(waits):
    from ldm.common.devices import AsyncScalar

    early, late = AsyncScalar(on_device(3).sum()), AsyncScalar(on_device(4).sum())
    assert early.read() == 3 and sum(waits.values()) >= 1
    waits.clear()
    tick()
    assert late.read() == 4 and not waits


def test_a_fused_optimizer_leaves_an_update_out_without_a_wait(waits):
    weight = nn.Parameter(on_device(1, 2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for bad in (0.0, 1.0):
        before = weight.detach().inner.clone()
        (weight.square().sum() * (float("nan") if bad else 1.0)).backward()
        optimizer.found_inf = torch.full((), bad, device=DEVICE)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(before, weight.inner) == bool(bad)
    assert weight.isfinite().inner.all() and not waits


def test_autocast_casts_what_cuda_casts_and_gradients_come_back_in_float32(waits):
    layer, x = moved(nn.Linear(3, 3)), OnDevice(torch.ones(2, 3))
    with torch.autocast(DEVICE, torch.bfloat16):
        y = layer(x)
        assert y.dtype == (x @ x.T).dtype == torch.bfloat16 and y.softmax(1).dtype == torch.float32
        assert (y + x).dtype == torch.float32  # a sum is as its terms are
        with torch.autocast(DEVICE, enabled=False):
            assert layer(x).dtype == torch.float32
        assert F.mse_loss(y, x).dtype == torch.float32
        F.mse_loss(y, x).backward()
    assert layer.weight.grad.dtype == torch.float32 and layer(x).dtype == torch.float32 and not waits


def test_inference_mode_works_too(waits):
    network = moved(nn.Linear(3, 2))
    with torch.inference_mode():
        y = network(on_device(1, 2, 3)).relu_().add_(1)
    assert y.inner.isfinite().all() and not waits
