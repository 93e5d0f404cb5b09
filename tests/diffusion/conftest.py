"""diffusers as the reference, in float64, and closed-form denoisers."""

import importlib

import numpy as np
import pytest
import torch

MODULES = (
    "ddpm",
    "ddim",
    "euler_discrete",
    "euler_ancestral_discrete",
    "heun_discrete",
    "dpmsolver_multistep",
    "unipc_multistep",
)


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class _Widened:
    """A module whose float32 is float64: diffusers names float32 at many places, which would hide errors below 1e-6."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


@pytest.fixture
def schedulers(monkeypatch):
    """`schedulers("DDIMScheduler", **config)`: diffusers' class of that name, computing in float64."""
    diffusers = pytest.importorskip("diffusers")
    for name in (*MODULES, "flow_match_euler_discrete", "flow_match_heun_discrete"):
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        monkeypatch.setattr(module, "torch", _Widened(torch))
        monkeypatch.setattr(module, "np", _Widened(np))
    return lambda name, **config: getattr(diffusers, name)(**config)


@pytest.fixture
def step_noise(monkeypatch):
    """One list of noise for both sides: `step_noise(tensors)` gives our `noise=`, and diffusers' draws are the same."""

    def use(tensors):
        ours, theirs = iter(tensors), iter(tensors)
        for name in MODULES:
            module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
            monkeypatch.setattr(module, "randn_tensor", lambda *args, **options: next(theirs), raising=False)
        return lambda x: next(ours)

    return use


class Recorder:
    """A smooth network without weights that keeps what it was given."""

    def __init__(self):
        self.inputs, self.timesteps = [], []

    def __call__(self, x, t, cond=None):
        t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))
        self.inputs.append(x)
        self.timesteps.append(t)
        return torch.sin(1.7 * x + 0.3 * x.roll(1, -1)) * (0.4 + t.view(-1, 1, 1, 1) / 2000)


@pytest.fixture
def recorder():
    return Recorder


class Gaussian:
    """The ideal denoiser of data N(mean, std^2), and the exact solution of its probability-flow ODE."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.mean = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator)
        self.std = torch.rand(1, 2, 4, 4, dtype=torch.float64, generator=generator) + 0.3
        self.calls = 0

    def __call__(self, x, sigma):
        self.calls += 1
        variance, noise = self.std.to(x) ** 2, sigma.view(-1, 1, 1, 1) ** 2
        return (variance * x + noise * self.mean.to(x)) / (variance + noise)

    def solution(self, x, sigma, s):
        """x at `s`, for `x` at `sigma`."""
        return self.mean + (x - self.mean) * ((self.std**2 + s**2) / (self.std**2 + sigma**2)).sqrt()


@pytest.fixture
def gaussian():
    return Gaussian()
