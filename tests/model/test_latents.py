"""A model generates in the precision that is requested, and its weights stay what they are."""

import copy
from typing import Any

import pytest
import torch

import ldm
from ldm import artifact
from ldm.adapters import lora
from ldm.adapters.controlnet import Control
from ldm.common.errors import UserError
from ldm.conditioning import Conditioner, LowRes
from ldm.diffusion import Denoiser, Flow
from ldm.images import Preprocess
from ldm.images.hints import Canny
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import Identity, UNet, controlnet_for
from ldm.networks.computing.precision import lowered
from ldm.training.finetune.run import open_base_model
from tests.adapters.models import equal, generated_latents, small


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return small()


def on_pixels() -> LatentDiffusion:
    conditioner = Conditioner({"low": LowRes(1, size=[8, 8])})
    network = UNet(1, channels=8, multipliers=(1,), heads=2, concat_channels=conditioner.concat_channels)
    return LatentDiffusion(Identity(1), Denoiser(network, Flow()), conditioner, Preprocess(1, 8, 8)).eval()


def as_it_is(model: LatentDiffusion) -> dict[str, Any]:
    return {"guidance": 2.0}


def with_lora(model: LatentDiffusion) -> dict[str, Any]:
    lora.start(model, "new", rank=2, alpha=None, wanted="attention", text_encoder=True, dropout=0.0)
    stirred(model, "lora")
    return {}


def with_controlnet(model: LatentDiffusion) -> dict[str, Any]:
    net = controlnet_for(model.denoiser.network, 1, 2)
    stirred(net)
    model.put_on(Control(net, Canny()), "edges")
    return {"control": torch.eye(8)[None], "control_end": 0.6, "guidance": 2.0}


def with_autoguide(model: LatentDiffusion) -> dict[str, Any]:
    model.load_autoguide(small(3))
    return {"autoguidance": 2.0}


def stirred(module: torch.nn.Module, only: str = "") -> None:
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if only in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    module.eval().requires_grad_(False)


PREPARED = [as_it_is, with_lora, with_controlnet, with_autoguide]
IN_FLOAT16 = [pytest.param(p, "float16", marks=pytest.mark.slow) for p in PREPARED[1:]]


@pytest.mark.parametrize(
    ("prepare", "precision"), [(as_it_is, "float16"), *((p, "bfloat16") for p in PREPARED), *IN_FLOAT16]
)
def test_all_that_is_on_a_model_computes_in_its_precision(model, prepare, precision):
    model, seen = copy.deepcopy(model), set()
    options = prepare(model) | {"steps": 3}
    wanted = generated_latents(model, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.precision = precision
    network: Any = model.denoiser.network
    for part in network.modules():
        part.register_forward_hook(lambda m, args, out: seen.add(args[0].dtype if args else out.dtype))

    def on_step(step: int, steps: int, denoised: torch.Tensor) -> None:
        assert denoised.dtype == torch.float32 and {p.dtype for p in model.parameters()} == {torch.float32}

    got = generated_latents(model, on_step=on_step, **options)
    assert getattr(torch, precision) in seen and got.dtype == torch.float32 and not torch.equal(got, wanted)
    torch.testing.assert_close(got, wanted, atol=0.05 * wanted.abs().max().item(), rtol=0)
    assert equal(model.state_dict(), before)


def test_float32_is_what_it_was_and_the_same_network(model):
    assert model.precision == "float32" and "computes in" not in repr(model)
    assert lowered(model.denoiser.network, torch.float32) is model.denoiser.network


def test_a_precision_stays_with_the_model_and_not_with_its_files(model, tmp_path):
    model = copy.deepcopy(model)
    before = ldm.save(model, tmp_path / "before")
    model.precision = torch.bfloat16
    assert "computes in  bfloat16" in repr(model.to("cpu")) and copy.deepcopy(model).precision == "bfloat16"
    model("a cat", output="pt")
    after = ldm.save(model, tmp_path / "after")
    for name in artifact.FILES:
        assert (before / name).read_bytes() == (after / name).read_bytes()
    with pytest.raises(UserError, match='set its precision="float16"'):
        model.half()


def test_loading_takes_a_precision_and_a_tile(model, tmp_path):
    folder = ldm.save(model, tmp_path / "model")
    plain, other = ldm.load(folder), ldm.load(folder, precision="bfloat16", tile=16)
    assert (plain.precision, plain.dtype, plain.tile) == ("auto", torch.float32, None)
    assert "float32 (auto)" in repr(plain)
    assert (other.dtype, other.tile) == (torch.bfloat16, 16) and "16, statistics of the image" in repr(other)
    vae = ldm.load(ldm.save(model.first_stage, tmp_path / "vae"), precision="bfloat16")
    assert "bfloat16" in repr(vae)
    z = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = model.first_stage.decode(z)
    assert not torch.equal(vae.decode(z), wanted)
    torch.testing.assert_close(vae.decode(z), wanted, atol=0.05 * wanted.abs().max().item(), rtol=0)
    assert vae.encode(wanted).mean.dtype == torch.float32


def test_what_trains_on_a_model_loads_it_in_float32(model, tmp_path):
    base = open_base_model(ldm.save(model, tmp_path / "model"))
    assert base.precision == "float32"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "half"}, "precision=half is unknown"),
        ({"tile": 1}, "tile=1: give the side"),
        ({"tile_statistics": "none"}, "tile_statistics=none is unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(options, words):
    with pytest.raises(UserError, match=words):
        ldm.load("nowhere", **options)


def test_a_model_of_pixels_has_nothing_to_tile():
    model = on_pixels()
    with pytest.raises(UserError, match="tile=64: this model works on pixels"):
        model.tile = 64
    model.precision = "bfloat16"
    assert model(image=torch.zeros(1, 2, 2), output="pt", steps=2).isfinite().all()


def test_a_network_that_overflows_in_float16_is_reported(model):
    model = copy.deepcopy(model)
    model.denoiser.network.conv_in.weight.mul_(1e8)
    model.precision = "float16"
    with pytest.raises(
        UserError, match="overflows in float16, so its result isn't finite: use precision=bfloat16 or float32"
    ):
        model("a cat", output="pt")


def test_tied_weights_stay_tied_in_the_twin():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).eval()
    net[1].weight = net[0].weight
    twin = lowered(net, torch.bfloat16)
    assert twin[0].weight is twin[1].weight and twin[0].weight.dtype == torch.bfloat16
    assert twin[2].num_batches_tracked.dtype == torch.int64 and net[0].weight.dtype == torch.float32
    assert list(twin.state_dict()) == list(net.state_dict())
