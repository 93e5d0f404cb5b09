"""A training step of the autoencoder: ours against diffusers' AutoencoderKL and MONAI's.

First at the same architecture: with diffusers' own weights, and beside MONAI's with one residual block less on each
level of the way up, as MONAI has it. Then each project's small one: our default of 32x32 images (`vae=small`) against
AutoencoderKL (32, 64, 64), in images a second and in PSNR after training both for the same time on emoji scenes.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL as DiffusersVAE
from hydra import initialize_config_dir
from torch import Tensor, nn

import ldm
from benchmarks.paired import Call, alternate, compared, flops, peak_flops, rows, stepper
from benchmarks.vae_loss import loss_of
from ldm.common.registry import build
from ldm.config.checking import checked
from ldm.config.compose import compose
from ldm.data.sources.emoji import Emoji
from ldm.networks import AutoencoderKL

WIDTHS, SIDE, LATENT = (32, 64, 64), 32, 4
LAST = torch.channels_last


def diffusers_vae() -> DiffusersVAE:
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    return DiffusersVAE(
        block_out_channels=WIDTHS,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1,
        latent_channels=LATENT,
        sample_size=SIDE,
    )


def monai_vae() -> nn.Module | None:
    try:
        from monai.networks.nets import AutoencoderKL as MonaiVAE
    except ImportError:
        return None
    return MonaiVAE(
        spatial_dims=2,
        in_channels=3,
        out_channels=3,
        num_res_blocks=(1, 1, 1),
        channels=WIDTHS,
        attention_levels=(False, False, False),
        latent_channels=LATENT,
        norm_num_groups=32,
    )


def twin(vae: DiffusersVAE) -> AutoencoderKL:
    with tempfile.TemporaryDirectory() as folder:
        vae.save_pretrained(folder)
        return ldm.load(folder).to(memory_format=LAST).train().requires_grad_(True)


def as_monai_has_it() -> AutoencoderKL:
    """Ours with as many blocks on the way up as on the way down."""
    vae = AutoencoderKL(latent_channels=LATENT, channels=WIDTHS, attention=True)
    for stage in vae.decoder.up_blocks:
        del stage.resnets[-1]
    return vae.to(memory_format=LAST)


def losses(images: Tensor) -> dict[str, Any]:
    """How each project's network gives the same loss of `images`."""

    def ours(net: AutoencoderKL) -> Tensor:
        reconstruction, posterior = net(images)
        return loss_of(reconstruction, posterior.mean, 2 * posterior.std.log(), images)

    def diffusers(net: DiffusersVAE) -> Tensor:
        posterior = net.encode(images).latent_dist
        return loss_of(net.decode(posterior.sample()).sample, posterior.mean, posterior.logvar, images)

    def monai(net: Any) -> Tensor:
        reconstruction, mean, sigma = net(images)
        return loss_of(reconstruction, mean, 2 * sigma.log(), images)

    return {"ours": ours, "diffusers": diffusers, "tuned": diffusers, "MONAI": monai}


def steps_of(nets: dict[str, Any], images: Tensor) -> dict[str, Call]:
    kinds = losses(images)
    closures = {name: (lambda n=net, kind=kinds[name]: kind(n)) for name, net in nets.items()}
    return {name: stepper(nets[name], closures[name], fused=name in ("ours", "tuned")) for name in nets}


def against_diffusers(batch: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    shipped, tuned = diffusers_vae(), diffusers_vae()
    tuned.load_state_dict(shipped.state_dict())
    nets = {"ours": twin(shipped), "diffusers": shipped, "tuned": tuned.to(memory_format=LAST)}
    images = torch.randn(batch, 3, SIDE, SIDE)
    with torch.no_grad():
        theirs = shipped.decode(shipped.encode(images).latent_dist.mode()).sample
        difference = float((nets["ours"].decode(nets["ours"].encode(images).mode()) - theirs).abs().max())
    steps = steps_of(nets, images)
    return compared(alternate(steps, rounds)) | {"flops": flops(steps["ours"]), "largest difference": difference}


def against_monai(batch: int, rounds: int) -> dict[str, Any] | None:
    if (monai := monai_vae()) is None:
        return None
    torch.manual_seed(0)
    steps = steps_of({"ours": as_monai_has_it(), "MONAI": monai}, torch.randn(batch, 3, SIDE, SIDE))
    work = {name: flops(step) for name, step in steps.items()}
    found = compared(alternate(steps, rounds)) | {"flops": work["ours"]}
    return found | {"MONAI's operations / ours": work["MONAI"] / work["ours"]}


def small_ones(batch: int, rounds: int) -> dict[str, Any]:
    """The default of 32x32 images beside diffusers' (32, 64, 64), both with a factor of 4."""
    nets = {"ours": default_vae(), "diffusers": diffusers_vae()}
    steps = steps_of(nets, torch.randn(batch, 3, SIDE, SIDE))
    found = compared(alternate(steps, rounds))
    speed = {name: 1e3 * batch / ms for name, ms in found["ms"].items()}
    return found | {"flops": flops(steps["ours"]), **{f"{name}, images/s": value for name, value in speed.items()}}


def default_vae() -> AutoencoderKL:
    """That of `python train_vae.py data=emoji`."""
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base=None):
        config = checked("train_vae", *compose("train_vae", ["data=emoji"]))
    return build(config["vae"], "vae", in_channels=3).to(memory_format=LAST)


def psnr_after(seconds: float, cache: Path, batch: int = 32) -> dict[str, float]:
    """PSNR on 512 validation scenes after `seconds` of training each, by AdamW at 2e-3, whose rate falls to zero."""
    train, val = Emoji(size=SIDE).tables(cache)
    held_out = val.batch(torch.arange(512).numpy(), ["image"])["image"]
    found = {}
    for name, make in {"ours": default_vae, "diffusers": diffusers_vae}.items():
        torch.manual_seed(0)
        net: Any = make()
        if name == "ours":
            net.start_from_principal_components(train.batch(torch.arange(1024).numpy(), ["image"])["image"])
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3, betas=(0.9, 0.95), fused=True)
        started, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < seconds:
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (count + 1) / 20) * (1 - spent / seconds)
            images = train.batch(torch.randint(len(train), (batch,)).numpy(), ["image"])["image"]
            optimizer.zero_grad()
            losses(images)[name](net).backward()
            optimizer.step()
            count += 1
        with torch.no_grad():
            if name == "ours":
                decoded = net.decode(net.encode(held_out).mode())
            else:
                decoded = net.decode(net.encode(held_out).latent_dist.mode()).sample
        found[f"{name}, PSNR"] = float(10 * torch.log10(4 / (decoded.clamp(-1, 1) - held_out).square().mean()))
        found[f"{name}, steps"] = count
    return found


def main(rounds: int = 9, batch: int = 32, seconds: int = 40, cache: str = "runs/cache/data") -> dict[str, Any]:
    peak = peak_flops()
    cases = {
        "as AutoencoderKL (32, 64, 64)": against_diffusers(batch, rounds),
        "as MONAI's (32, 64, 64)": against_monai(batch, rounds),
        "our default, their (32, 64, 64)": small_ones(batch, rounds),
    }
    lines = {name: rows(case, peak) for name, case in cases.items() if case is not None}
    lines[f"after {seconds} s of training"] = psnr_after(seconds, Path(cache), batch)
    return lines
