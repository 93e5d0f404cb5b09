"""How stage two's training scales with batch, resolution, channels, the size of the data, and two processes.

Data of any size are written synthetically: random latents with labels. The anonymous memory (RssAnon) of a process that
trains on them shows whether it grows with the data; pages of memory-mapped files don't count.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.paired import Call, alternate, stepper
from ldm.data.caches.latents import LatentTable
from ldm.data.datamodule import BatchModule
from ldm.data.storage.strings import Strings
from ldm.data.storage.table import Table, new_array
from ldm.diffusion import EDM, Denoiser
from ldm.images import Preprocess
from ldm.networks import UNet

SHAPE, FACTOR = (4, 8, 8), 4
ROOT = Path(__file__).parents[1]


def synthetic(folder: Path, n: int) -> None:
    """`n` cached latents with labels and captions, on disk; the pixels are a file without content."""
    side = SHAPE[1] * FACTOR
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (n, 3, side, side))
    arrays = [new_array(folder / f"{name}.npy", np.float32, (n, *SHAPE)) for name in ("mean", "std")]
    rng = np.random.default_rng(0)
    for start in range(0, n, 4096):
        rows = slice(start, min(n, start + 4096))
        arrays[0][rows] = rng.standard_normal((rows.stop - start, *SHAPE), np.float32)
        arrays[1][rows] = 0.1
    Strings.save(folder, "text", [f"image {i} of {n}" for i in range(n)])
    new_array(folder / "label.npy", np.int64, (n,))


def opened(folder: Path, n: int) -> LatentTable:
    """What `synthetic` wrote, memory-mapped as a run's data are."""
    images, mean, std, label = (np.load(folder / f"{k}.npy", mmap_mode="r") for k in ("images", "mean", "std", "label"))
    side = SHAPE[1] * FACTOR
    columns = {"label": label, "text": Strings(folder, "text")}
    table = Table(images, columns, Preprocess(3, side, side), f"synthetic-{n}")
    return LatentTable(table, mean, std, torch.zeros(SHAPE[0]), torch.ones(SHAPE[0]))


def denoiser(in_channels: int, width: int) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(UNet(in_channels, channels=width, multipliers=(1, 2)), EDM(sigma_data=1.0))


def stepping(net: Denoiser, latents: Callable[[], torch.Tensor]) -> Call:
    """A training step of `net` on given latents."""

    def loss() -> torch.Tensor:
        x0 = latents()
        return net.loss(x0, torch.randn_like(x0), torch.rand(len(x0)) + 0.1).mean()

    return stepper(net, loss, fused=True)


def shapes(rounds: int) -> dict[str, Any]:
    """`of_shape` by batch, side of the latents and width, one changed at a time from 32, 8x8 and 64."""
    cases = {f"batch {b}": (b, 8, 64) for b in (8, 16, 32, 64, 128)}
    cases |= {f"{side}x{side} latents": (32, side, 64) for side in (8, 16, 32)}
    cases |= {f"{width} channels": (32, 8, width) for width in (32, 64, 128)}
    return {
        name: in_a_process(f"of_shape({batch}, {side}, {width}, {rounds})")
        for name, (batch, side, width) in cases.items()
    }


def of_shape(batch: int, side: int, width: int, rounds: int) -> dict[str, float]:
    """Images a second of training steps, and the peak of this process's memory."""
    net, x0 = denoiser(4, width).to(memory_format=torch.channels_last), torch.randn(batch, 4, side, side)
    step = stepping(net, lambda: x0)
    seconds = median(alternate({"step": step}, rounds)["step"])
    return {"images/s": batch / seconds, "peak, MB": memory("VmHWM")}


def memory(kind: str) -> float:
    """MB of this process: VmHWM is its peak, RssAnon its own pages without files. Only Linux has them."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(kind)) / 2**10


def train_on(folder: Path, n: int, steps: int, batch: int = 64) -> dict[str, float]:
    """Some steps on the latents in `folder`, in this process: their rate, RssAnon after them, what a gather takes."""
    table = opened(folder, n)
    data = BatchModule(table, table, ("label", "text"), batch, seed=0)
    batches = iter(data.train_dataloader())
    gathering = alternate({"gather": lambda: next(batches)}, 50)["gather"]

    def latents() -> torch.Tensor:
        some = next(batches)
        return torch.addcmul(some["latent_mean"], some["latent_std"], torch.randn_like(some["latent_mean"]))

    step = stepping(denoiser(SHAPE[0], 32), latents)
    seconds = median(alternate({"step": step}, steps)["step"])
    gathered = 1e3 * median(gathering)
    return {"images/s": batch / seconds, "RssAnon, MB": memory("RssAnon"), "a batch gathered in ms": gathered}


def of_size(n: int, steps: int) -> dict[str, float]:
    """`train_on` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic(Path(folder), n)
        return in_a_process(f"train_on(Path({folder!r}), {n}, {steps})")


def in_a_process(call: str) -> dict[str, float]:
    """What a function of this module returns in a process of its own, whose memory nothing else has touched."""
    code = f"import json; from benchmarks.scale import *; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def processes(steps: int = 60) -> dict[str, Any]:
    """Images a second of `train_ldm.py` in one process of two threads, and in two processes (gloo) of one thread."""
    report = {}
    for devices in (1, 2):
        with tempfile.TemporaryDirectory() as runs:
            common = ["data=emoji", f"runs_dir={runs}", "trainer.max_time=null", "logger=none"]
            run("train_vae.py", *common, "trainer.max_steps=5")
            two = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"] if devices == 2 else []
            _, *seconds = [  # the first encodes the latents
                took(run("train_ldm.py", *common, *two, f"trainer.max_steps={n}", f"name=n{n}"))
                for n in (1, 20, 20 + steps)
            ]
            report[f"{devices} process{'es' * (devices > 1)}"] = {"images/s": 32 * steps / (seconds[1] - seconds[0])}
    return report


def run(script: str, *words: str) -> str:
    done = subprocess.run([sys.executable, script, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def took(output: str) -> float:
    """The seconds that a run says it took."""
    return float(output.rpartition(" steps in ")[2].split()[0])


def main(
    rounds: int = 5, sizes: str | int = "10000,100000,1000000", steps: int = 20, parts: str = "shapes,sizes,processes"
) -> dict[str, Any]:
    report: dict[str, Any] = {}
    if "shapes" in parts:
        report |= shapes(rounds)
    if "sizes" in parts:
        report |= {f"{int(n):,} latents": of_size(int(n), steps) for n in str(sizes).split(",")}
    if "processes" in parts:
        report |= processes()
    return report
