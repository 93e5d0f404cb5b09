"""A training step of the U-Net: ours against diffusers' with the same weights, as shipped and tuned; and MONAI's.

Tuned means channels_last and a fused AdamW. MONAI's network has the same widths, blocks and attention, but weights of
its own and a little less arithmetic, so its ratio is that of time per operation.
"""

import tempfile
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import ldm
from benchmarks.paired import alternate, compared, flops, peak_flops, rows, stepper
from ldm.networks import Cond

CASES = {f"{side}x{side}{', text' * cross}": (side, cross) for cross in (True, False) for side in (8, 16, 32)}
WIDTHS, CONTEXT, TOKENS, HEADS = (64, 128, 256), 128, 12, 4
LAST = torch.channels_last


def diffusers_unet(side: int, cross: bool) -> UNet2DConditionModel:
    down, up = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if cross else ("DownBlock2D", "UpBlock2D")
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=(down,) * 3,
        up_block_types=(up,) * 3,
        cross_attention_dim=CONTEXT,
        attention_head_dim=HEADS,
        norm_num_groups=32,
    )


def monai_unet(cross: bool) -> nn.Module | None:
    try:
        from monai.networks.nets import DiffusionModelUNet
    except ImportError:
        return None
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=4,
        out_channels=4,
        channels=WIDTHS,
        num_res_blocks=1,
        attention_levels=(cross,) * 3,
        num_head_channels=[width // HEADS for width in WIDTHS],
        norm_num_groups=32,
        with_conditioning=cross,
        cross_attention_dim=CONTEXT if cross else None,
    )


def networks(side: int, cross: bool) -> dict[str, Any]:
    """Ours and diffusers', as shipped and in channels_last, with the same weights; MONAI's where it is installed."""
    torch.manual_seed(0)
    shipped, tuned = (diffusers_unet(side, cross) for _ in range(2))
    tuned.load_state_dict(shipped.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        shipped.save_pretrained(folder)
        ours = ldm.load(folder)
    found = {"ours": ours.to(memory_format=LAST), "diffusers": shipped, "tuned": tuned.to(memory_format=LAST)}
    if (monai := monai_unet(cross)) is not None:
        found["MONAI"] = monai
    return {name: network.train().requires_grad_(True) for name, network in found.items()}


def measure(side: int, cross: bool, batch: int, rounds: int) -> dict[str, Any]:
    nets = networks(side, cross)
    x, t = torch.randn(batch, 4, side, side), torch.rand(batch) * 999
    tokens = torch.randn(batch, TOKENS, CONTEXT)
    last = x.contiguous(memory_format=LAST)
    calls = {
        "ours": lambda: nets["ours"](x, t, Cond(tokens=tokens)),
        "diffusers": lambda: nets["diffusers"](x, t, tokens).sample,
        "tuned": lambda: nets["tuned"](last, t, tokens).sample,
        "MONAI": lambda: nets["MONAI"](x, t, tokens if cross else None),
    }
    with torch.no_grad():
        difference = float((calls["ours"]() - calls["diffusers"]()).abs().max())
    losses = {name: (lambda call=calls[name]: square(call())) for name in nets}
    steps = {name: stepper(nets[name], losses[name], fused=name in ("ours", "tuned")) for name in nets}
    work = {name: flops(steps[name]) for name in ("ours", "MONAI") if name in nets}
    seconds = alternate(steps, rounds)
    if "MONAI" in work:
        seconds["MONAI"] = [s * work["ours"] / work["MONAI"] for s in seconds["MONAI"]]
    return compared(seconds) | {"flops": work["ours"], "largest difference": difference}


def square(out: Tensor) -> Tensor:
    return out.square().mean()


def main(rounds: int = 9, batch: int = 32, sides: str | int = "8,16,32") -> dict[str, Any]:
    peak, wanted = peak_flops(), [int(side) for side in str(sides).split(",")]
    cases = {name: case for name, case in CASES.items() if case[0] in wanted}
    return {name: rows(measure(*case, batch, rounds), peak) for name, case in cases.items()}
