"""Compiled networks compute what they do otherwise, in one piece and in two graphs for all shapes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import ldm
from ldm.common.errors import UserError
from ldm.networks import AutoencoderKL, Cond, Controlled, DiT, UNet, controlnet_for
from ldm.networks.computing.coding import Coding
from ldm.networks.computing.compiled import TOKENS, Compiler, compiler_of, varying

CONDITIONS = {"context_dim": 8, "vector_dim": 8}
NETWORKS: dict[str, Any] = {
    "unet": lambda: UNet(4, channels=[8, 16], heads=2, **CONDITIONS),
    "unet in patches": lambda: UNet(4, channels=[8, 8], heads=2, attention=False, patch=2, **CONDITIONS),
    "dit": lambda: DiT(4, channels=8, depth=2, heads=2, patch=2, **CONDITIONS),
}
# batch, height, width, tokens: the first two are seen, what follows isn't
SHAPES = [(2, 16, 16, 5), (3, 8, 12, 30), (2, 16, 16, 12), (5, 20, 24, 40), (3, 12, 12, 17), (4, 24, 8, 3)]


def counting(part: Any) -> Any:
    """All of its weights count."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return part


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()


def given(batch: int, height: int, width: int, tokens: int) -> tuple[Any, ...]:
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (batch, 1))
    cond = Cond(vector=torch.randn(batch, 8), tokens=torch.randn(batch, tokens, 8), mask=mask)
    return torch.randn(batch, 4, height, width), torch.rand(batch), cond


def same_as_eager(network: Any, *args: Any) -> None:
    """Output and gradients."""
    results = []
    for stance in ("default", "force_eager"):
        with torch.compiler.set_stance(stance):  # type: ignore[arg-type]
            out = network(*args)
        network.zero_grad()
        out.square().mean().backward()
        results.append([out, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 4
    for compiled, eager in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_denoisers_take_two_graphs_for_all_sizes_and_captions(kind):
    network = counting(NETWORKS[kind]())
    names = list(network.state_dict())
    Compiler("aot_eager").denoiser(network)
    for shape in SHAPES:
        same_as_eager(network, *given(*shape))
        assert graphs() <= 2
    assert graphs() == 2 and list(network.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_controlnets_take_two_graphs_beside_the_network_s(kind):
    base = NETWORKS[kind]().requires_grad_(False)
    network: Any = Controlled(base)
    network.add("edges", controlnet_for(base, 3, 2 * base.patch))
    counting(network)
    Compiler("aot_eager").denoiser(network)
    for batch, height, width, tokens in SHAPES[:4]:
        x, c_noise, cond = given(batch, height, width, tokens)
        control = {"edges": torch.rand(batch, 3, 2 * height, 2 * width)}
        same_as_eager(network, x, c_noise, replace(cond, control=control))
        assert graphs() <= 4
    with torch.no_grad():
        assert network(x, c_noise, cond).isfinite().all()  # a step without
    assert not counters["graph_break"]


@pytest.mark.slow
def test_both_halves_of_an_autoencoder_take_two_graphs_each():
    """The smaller and turned latents of EQ-VAE among them; and the gradient that balances a critic runs no compiled
    part, which would be the decoder once more."""
    vae = counting(AutoencoderKL(3, 2, channels=8, stem=2, shortcut=True, attention=True))
    names, compiler = list(vae.state_dict()), Compiler("aot_eager")
    compiler(vae.encoder, "encoder")
    compiler(vae.decoder, "decoder")
    for batch, height, width, _ in SHAPES:
        x = torch.randn(batch, 3, height, width)
        decoded = vae.decode(torch.rot90(vae.encode(x).mean, 1, (2, 3)))
        loss = decoded.square().mean()
        (balance,) = torch.autograd.grad(loss, vae.last_layer, retain_graph=True)
        loss.backward()
        torch.testing.assert_close(balance, vae.last_layer.grad)
        vae.zero_grad()
        with torch.compiler.set_stance("force_eager"):
            eager = vae.decode(torch.rot90(vae.encode(x).mean, 1, (2, 3)))
        torch.testing.assert_close(decoded, eager, atol=1e-5, rtol=1e-5)
        assert graphs() <= 4
    assert graphs() == 4 and list(vae.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_generating_shares_graphs_between_calls(precision):
    """Each call has a twin of its own."""
    coding, x = Coding(precision, compile="aot_eager"), torch.randn(2, 4, 8, 8)
    network = counting(DiT(4, channels=8, depth=1, heads=2)).eval()
    vae = counting(AutoencoderKL(3, 4, channels=8)).eval()
    with torch.no_grad():
        for size in (8, 12, 12, 10):
            z, c_noise = torch.randn(2, 4, size, size), torch.rand(2)
            dtype = coding.dtype(x.device)
            got = coding.network(network)(z.to(dtype), c_noise)
            tolerance = {"atol": 1e-5, "rtol": 1e-5} if precision == "float32" else {"atol": 0.1, "rtol": 0.1}
            torch.testing.assert_close(got.float(), network(z, c_noise), **tolerance)
            torch.testing.assert_close(coding.decode(vae, z), vae.decode(z), **tolerance)
            assert graphs() <= 4
    assert graphs() == 4 and vae.decoder.compiled is None and network._compiled_call_impl is None


def test_padded_tokens_change_nothing():
    network = counting(NETWORKS["dit"]())
    x, c_noise, cond = given(2, 4, 4, 5)
    padded = cond.padded(TOKENS)
    assert padded.tokens.shape == (2, TOKENS, 8) and padded.mask.sum() == cond.mask.sum()
    torch.testing.assert_close(network(x, c_noise, padded), network(x, c_noise, cond), atol=1e-6, rtol=1e-5)
    assert Cond().padded(TOKENS) == Cond()


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((2, 4, 8, 6), [0, 2, 3]), ((1, 4, 8, 1), [2]), ((2, 16, 8), [0, 1]), ((2, 8), [0]), ((3,), [0])],
)
def test_what_varies(shape, dims):
    assert varying(torch.zeros(shape)) == dims
    assert varying(torch.zeros(2, 16, dtype=torch.bool)) == [0, 1]


def test_what_compile_means():
    assert compiler_of(False) is None and compiler_of(True) == Compiler("inductor")
    assert compiler_of("aot_eager") == Compiler("aot_eager") == Coding(compile="aot_eager").compile
    with pytest.raises(UserError, match="compile=inducter.*inductor"):
        compiler_of("inducter")
    with pytest.raises(UserError, match="compile=2: give true, false, or a backend"):
        compiler_of(2)
    with pytest.raises(UserError, match="compile=nothing"):
        ldm.load("nowhere", compile="nothing")


def test_without_a_compiler_inductor_is_refused_in_one_sentence(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none(*_: Any) -> str:
        raise exc.InvalidCxxCompiler()

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        ldm.load("nowhere", compile=True)
    with pytest.raises(UserError, match="there is no model"):
        ldm.load("nowhere", compile="aot_eager")
