"""An autoencoder in another precision, in slices and in tiles gives what it gives at once in float32."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ldm.common.errors import UserError
from ldm.networks import AutoencoderKL, Identity
from ldm.networks.computing import coding, strips, tiles
from ldm.networks.computing.coding import Coding

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"channels": 8, "multipliers": (1, 2, 2), "blocks": 2},
    "stem and shortcut": {"channels": 8, "multipliers": (1, 2), "stem": 2, "shortcut": True},
    "attention": {"channels": 8, "multipliers": (1, 2, 1), "attention": True},
}


def make(kind: str = "plain") -> Any:
    """Small, all of its weights counting, its images about in [-1, 1]."""
    torch.manual_seed(0)
    vae = AutoencoderKL(3, 4, **KINDS[kind]).eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    vae.decoder.conv_out.weight.mul_(0.3)
    return vae


def images(n: int = 1, height: int = 48, width: int = 72) -> torch.Tensor:
    rough = torch.rand(n, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(rough, size=(height, width), mode="bicubic").clamp(0, 1) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [16, 37])
@torch.inference_mode()
def test_tiles_with_the_image_s_statistics_give_the_whole_s_result(kind, tile):
    vae, x = make(kind), images(2)
    whole, tiled = vae.encode(x), Coding(tile=tile).encode(vae, x)
    torch.testing.assert_close(tiled.mean, whole.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tiled.std, whole.std, atol=1e-5, rtol=1e-5)
    decoded = vae.decode(whole.mean)
    assert decoded.std() > 0.1
    torch.testing.assert_close(Coding(tile=tile).decode(vae, whole.mean), decoded, atol=1e-5, rtol=1e-5)


def assert_as_near_to_float64(tiled: torch.Tensor, whole: torch.Tensor, vae: Any, z: torch.Tensor) -> None:
    """Rounding alone: it is spread as in the whole, where a wrong edge would stand out by a thousand times as much."""
    truth = copy.deepcopy(vae).double().pixels(z.double())
    tiled_off, whole_off = (decoded.double() - truth for decoded in (tiled, whole))
    figures = [f"{off.square().mean().sqrt():.1e}, at most {off.abs().max():.1e}" for off in (tiled_off, whole_off)]
    print(f"from float64: strips {figures[0]}; the whole {figures[1]}")
    assert tiled_off.square().mean() < 1.5 * whole_off.square().mean()
    assert tiled_off.abs().max() < 2 * whole_off.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_strips_are_as_near_to_float64_as_the_whole(kind):
    vae = make(kind)
    z = vae.encode(images()).mean
    assert_as_near_to_float64(Coding(tile=16).decode(vae, z), vae.decode(z), vae, z)


def exact_norm(self: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """Torch's own sums over large maps in channels_last are off by 2e-3."""
    normed = F.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
    return normed.contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@torch.inference_mode()
def test_strips_of_1024_pixels_are_as_near_to_float64_as_the_whole(monkeypatch):
    """As many strips as of kl_f8's decoder, which is eight times as wide."""
    torch.manual_seed(0)
    vae = AutoencoderKL(3, 4, channels=16, multipliers=(1, 2, 4, 4), blocks=2).eval().requires_grad_(False)
    z = torch.randn(1, 4, 128, 128)
    tiled = Coding(tile=96).decode(vae, z)
    monkeypatch.setattr(torch.nn.GroupNorm, "forward", exact_norm)
    whole = vae.decode(z)
    monkeypatch.undo()
    assert_as_near_to_float64(tiled, whole, vae, z)


@torch.inference_mode()
def test_strips_and_their_edges_see_each_row_once(monkeypatch):
    """Odd strips, the least there are, and an image that isn't larger than a tile."""
    vae = make()
    z, calls = vae.encode(images()).mean, []
    whole = vae.decode(z)
    for least in (2, 3):  # rows; a block reads two beyond a strip
        monkeypatch.setattr(strips, "LEAST_ROWS", least)
        torch.testing.assert_close(vae.pixels(z, strips.decoder(vae, 1)), whole, atol=1e-5, rtol=1e-5)
    vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(Coding(tile=59).decode(vae, z), whole) and calls  # 48 x 72 pixels are less than 59 x 59


@torch.inference_mode()
def test_tiles_by_themselves_are_blended_and_differ_by_their_statistics():
    vae, x = make(), images()
    whole = vae.encode(x).mean
    own = Coding(tile=32, tile_statistics="tile")
    decoded, mean = own.decode(vae, whole), own.encode(vae, x).mean
    assert decoded.shape == x.shape and mean.shape == whole.shape
    assert 1e-3 < (decoded - vae.decode(whole)).square().mean().sqrt() < 0.5
    same = Coding(tile=32, tile_statistics="tile").decode(vae, torch.zeros_like(whole))
    assert torch.isfinite(same).all()


@pytest.mark.parametrize("encodes", [True, False])
def test_blending_keeps_what_the_tiles_agree_on(encodes):
    """An image through tiles that each give their own pixels, larger or smaller, is the image so."""
    x = images(1, 72, 104)
    run = (lambda t: F.avg_pool2d(t, 4)) if encodes else (lambda t: F.interpolate(t, scale_factor=4.0))
    torch.testing.assert_close(tiles.blended(run, x, 8, 4, encodes), run(x), atol=1e-6, rtol=0)
    starts = tiles.spans(27, 8)
    assert starts[0] == (0, 8) and starts[-1] == (19, 8) and tiles.spans(8, 8) == [(0, 8)]
    assert all(b[0] - a[0] <= 6 for a, b in zip(starts, starts[1:], strict=False))  # two of eight places overlap


@torch.inference_mode()
def test_a_batch_is_computed_in_slices(monkeypatch):
    vae, z, sizes = make(), torch.randn(5, 4, 4, 4), []
    whole = vae.decode(z)
    vae.decoder.register_forward_hook(lambda m, args, out: sizes.append(len(out)))
    monkeypatch.setattr(coding, "SLICE_PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(Coding().decode(vae, z), whole, atol=1e-5, rtol=1e-5)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(Coding().encode(vae, whole).mean, vae.encode(whole).mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 30.0), ("float16", 45.0)])
@pytest.mark.parametrize("tile", [None, 32])
@torch.inference_mode()
def test_half_precision_is_near_and_leaves_the_weights(precision, least, tile):
    vae, x = make(), images()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    own = Coding(precision, tile)
    wanted, got = vae.decode(vae.encode(x).mean), own.decode(vae, own.encode(vae, x).mean)
    assert got.dtype == torch.float32 and not torch.equal(got, wanted) and not own.overflowed
    assert 10 * torch.log10(4 / (got - wanted).square().mean()) > least  # dB
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


@pytest.mark.parametrize("tile", [None, 32])
@torch.inference_mode()
def test_a_decoder_that_overflows_in_float16_is_decoded_in_float32_and_says_so_once(caplog, tile):
    vae, z = make(), torch.randn(1, 4, 12, 12)
    vae.decoder.conv_in.weight.mul_(1e5)
    own, seen = Coding("float16", tile), []
    vae.decoder.conv_in.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    wanted = vae.decode(z)
    first, second = own.decode(vae, z), own.decode(vae, z)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(first, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(first, second)
    assert seen == [torch.float32, torch.float16, torch.float32, torch.float32]  # the second time at once
    assert [r.message for r in caplog.records] == [
        "the autoencoder's decoder overflows in float16, so it is computed in float32"
    ]


@torch.inference_mode()
def test_an_encoder_that_overflows_is_no_reason_for_the_decoder(caplog):
    vae, x = make(), images()
    vae.encoder.conv_in.weight.mul_(1e7)
    own = Coding("float16")
    torch.testing.assert_close(own.encode(vae, x).mean, vae.encode(x).mean, atol=1e-5, rtol=1e-5)
    own.decode(vae, torch.randn(1, 4, 4, 4))
    assert own.overflowed == {"encoder"} and len(caplog.records) == 1


@pytest.mark.parametrize("stage", [make(), Identity(4)], ids=["autoencoder", "identity"])
@torch.inference_mode()
def test_latents_that_overflowed_are_no_silent_image(stage):
    z = torch.full((1, 4, 4, 4), float("nan"))
    with pytest.raises(
        UserError, match="overflows in float16, so its result isn't finite: use precision=bfloat16 or float32"
    ):
        Coding("float16").decode(stage, z)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "bfloat"}, "precision=bfloat is unknown. Did you mean 'bfloat16'"),
        ({"precision": 16}, "precision=16 is unknown"),
        ({"precision": torch.float64}, "precision=float64 is unknown"),
        ({"tile": 8}, "tile=8: give the side of a tile in pixels, at least 16"),
        ({"tile": "auto"}, "tile=auto: give the side"),
        ({"tile_statistics": "tiles"}, "tile_statistics=tiles is unknown. Did you mean 'tile'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        Coding(**options)


def test_auto_is_bfloat16_on_a_gpu_that_has_it(monkeypatch):
    automatic = Coding("auto")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    assert automatic.dtype(torch.device("cuda")) == torch.bfloat16
    assert automatic.dtype(torch.device("cpu")) == automatic.dtype(torch.device("mps")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert automatic.dtype(torch.device("cuda")) == torch.float32
    assert Coding(torch.bfloat16).precision == "bfloat16"


PEAK = """
import sys, torch
from ldm.networks import AutoencoderKL
from ldm.networks.computing.coding import Coding

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

def exact(self, x):  # torch's own sums over maps in channels_last are off by 2e-3 at this size
    normed = torch.nn.functional.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
    return normed.contiguous(memory_format=torch.channels_last)

if "exact" in sys.argv:
    torch.nn.GroupNorm.forward = exact
torch.manual_seed(0)
vae = AutoencoderKL(3, 4, channels=128, multipliers=(1, 2, 4, 4), blocks=2).eval().requires_grad_(False)
vae.to(memory_format=torch.channels_last)
with torch.inference_mode():
    vae.decode(torch.randn(1, 4, 8, 8))
    base, z = peak(), torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(1))
    decoded = Coding(tile=int(sys.argv[1]) or None).decode(vae, z)
print(peak() - base)
torch.save(decoded.clone(), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells VmHWM")
def test_tiles_take_a_quarter_of_the_memory(tmp_path):
    """kl_f8's decoder, 1024 x 1024: the peak above that of a process that has decoded a small image."""

    def decoded(tile: int, *how: str) -> tuple[float, torch.Tensor]:
        out = tmp_path / "decoded"
        run = subprocess.run([sys.executable, "-c", PEAK, str(tile), str(out), *how], capture_output=True, check=True)
        return float(run.stdout), torch.load(out)

    (whole, _), (_, wanted), (tiled, got) = decoded(0), decoded(0, "exact"), decoded(96)
    print(f"peak: {whole:.0f} MB at once, {tiled:.0f} MB in tiles; difference {(wanted - got).abs().max():.1e}")
    assert tiled < whole / 4
    # Of a network this wide both are off from float64 by about 1e-5 (see above), each with roundings of its own.
    torch.testing.assert_close(got, wanted, atol=3e-5, rtol=1e-5)
