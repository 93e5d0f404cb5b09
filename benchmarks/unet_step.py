"""A training step of the U-Net: ours against diffusers' with the same weights, as it comes and tuned.

    python -m benchmarks [rounds=9] [batch=32]

Paired: in one process, in turn, medians of the ratios. Tuned means channels_last and a fused AdamW, as shipped neither.
A ratio is diffusers' time over ours. Prints a table and JSON; the largest difference of the two outputs stands beside.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import ldm
from ldm.networks import Cond

CASES = {"8x8, text": (8, True), "16x16, text": (16, True), "8x8": (8, False)}


def networks(side: int, cross: bool) -> dict[str, Any]:
    """Ours, diffusers' as shipped, and diffusers' in channels_last: the same weights in all."""
    torch.manual_seed(0)
    down, up = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if cross else ("DownBlock2D", "UpBlock2D")
    config = {
        "sample_size": side,
        **{"in_channels": 4, "out_channels": 4, "block_out_channels": (64, 128, 256), "layers_per_block": 1},
        **{"down_block_types": (down,) * 3, "up_block_types": (up,) * 3},
        **{"cross_attention_dim": 128, "attention_head_dim": 4, "norm_num_groups": 32},
    }
    shipped, tuned = UNet2DConditionModel(**config), UNet2DConditionModel(**config)
    tuned.load_state_dict(shipped.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        shipped.save_pretrained(folder)
        ours = ldm.load(folder)
    last = torch.channels_last
    networks = {"ours": ours.to(memory_format=last), "shipped": shipped, "tuned": tuned.to(memory_format=last)}
    return {name: network.train().requires_grad_(True) for name, network in networks.items()}


def stepper(network: nn.Module, call: Callable[[], Tensor], fused: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        call().square().mean().backward()
        optimizer.step()

    return step


def measure(side: int, cross: bool, batch: int, rounds: int) -> dict[str, float]:
    nets = networks(side, cross)
    x, t, tokens = torch.randn(batch, 4, side, side), torch.rand(batch) * 999, torch.randn(batch, 12, 128)
    last = x.contiguous(memory_format=torch.channels_last)
    calls = {
        "ours": lambda: nets["ours"](x, t, Cond(tokens=tokens)),
        "shipped": lambda: nets["shipped"](x, t, tokens).sample,
        "tuned": lambda: nets["tuned"](last, t, tokens).sample,
    }
    with torch.no_grad():
        difference = float((calls["ours"]() - calls["shipped"]()).abs().max())
    steps = {name: stepper(nets[name], calls[name], name != "shipped") for name in nets}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    report = {"ours, ms": 1e3 * statistics.median(seconds["ours"]), "largest difference": difference}
    for name in ("shipped", "tuned"):
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
        report |= {
            f"{name} / ours": statistics.median(ratios),
            f"{name}, least": ratios[0],
            f"{name}, most": ratios[-1],
        }
    return report


def main(arguments: list[str]) -> None:
    options = {"rounds": 9, "batch": 32} | {k: int(v) for k, _, v in (a.partition("=") for a in arguments)}
    report = {name: measure(*case, options["batch"], options["rounds"]) for name, case in CASES.items()}
    for name, row in report.items():
        print(f"{name:<12}" + "".join(f"  {key} {value:.4g}" for key, value in row.items()))
    print(json.dumps(report))
