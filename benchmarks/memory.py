"""Peak memory of a training step and of sampling, each in a process of its own.

The peak is VmHWM, which only Linux has. What Python and the libraries take is measured by itself and given too.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN = """
from benchmarks import unet_step, vae_step
from benchmarks.paired import stepper
from ldm.networks import Cond
import torch
"""
END = """
print(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 2**10)
"""
UNET = """
net = unet_step.networks({side}, True)[{name!r}]
x, t, tokens = torch.randn(32, 4, {side}, {side}), torch.rand(32) * 999, torch.randn(32, 12, 128)
call = (lambda: net(x, t, Cond(tokens=tokens))) if {name!r} == 'ours' else (lambda: net(x, t, tokens).sample)
step = stepper(net, lambda: unet_step.square(call()), fused={name!r} == 'ours')
for _ in range(3): step()
"""
VAE = """
shipped, images = vae_step.diffusers_vae(), torch.randn(64, 3, 64, 64)
nets = {{'ours': vae_step.twin(shipped)}} if {name!r} == 'ours' else {{'diffusers': shipped}}
step = vae_step.steps_of(nets, images)[{name!r}]
for _ in range(3): step()
"""
CASES = {"U-Net, 16x16, batch 32": (UNET, 16), "U-Net, 32x32, batch 32": (UNET, 32), "VAE, 64x64, batch 64": (VAE, 0)}


def peak(code: str, **given: Any) -> float:
    """MB of a process that runs `code`."""
    words = [sys.executable, "-W", "ignore", "-c", BEGIN + code.format(**given) + END]
    return float(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> dict[str, Any]:
    if not Path("/proc/self/status").exists():
        return {"peak memory": {"": "only Linux tells it"}}
    base = peak("")
    report: dict[str, Any] = {"libraries alone": {"ours, MB": base, "diffusers, MB": base}}
    for case, (code, side) in CASES.items():
        report[case] = {f"{name}, MB": peak(code, side=side, name=name) for name in ("ours", "diffusers")}
    return report
