"""Makes expected.npz beside runs.tar.xz: what the code that made those runs generates from them, before and after it
trains them on. Run it in a clone of that code, commit 3a67e7e, never with newer code:

    python make.py runs.tar.xz expected.npz
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import ldm

EDGES = torch.linspace(0, 1, 768).reshape(1, 3, 16, 16)
ON = ("resume=true", "trainer.max_steps=4", "samples.every_n_steps=0", "logger=none", "data=digits", "batch_size=4")
FIRST = ("name=first", "vae=small", "vae.channels=[4,4]", "vae.stem=1", "vae.latent_channels=2")
SECOND = (
    "name=second",
    "first_stage=first",
    "conditioner=label",
    "conditioner.label.dim=8",
    "optimizer.warmup_steps=1",
)
DIT = ("network=dit", "network.channels=8", "network.depth=1", "network.heads=1")
LORA = ("name=lora", "finetune=lora", "base=second", "finetune.rank=1", "optimizer.warmup_steps=1")
RUNS = {"lora": ("train_ldm", LORA), "second": ("train_ldm", SECOND + DIT), "first": ("train_vae", FIRST)}


def generated(runs: Path, name: str) -> np.ndarray:
    """An image (1, 1, 16, 16) of the run `name`; of a LoRA, which changes it by little, its weights, flat."""
    if name == "lora":
        weights = load_file(runs / "ldm/lora/model/model.safetensors")
        ldm.load(runs / "ldm/lora")(labels=[3], steps=1)
        return np.concatenate([weights[key].numpy().ravel() for key in sorted(weights)])
    if name == "first":
        vae = ldm.load(runs / "vae/first")
        with torch.no_grad():
            return vae.decode(torch.linspace(-1, 1, 128).reshape(1, 2, 8, 8)).numpy()
    control = {"control": EDGES} if name == "net" else {}
    model = ldm.load(runs / "ldm" / name)
    return model(labels=[3], seed=1, steps=4, guidance=2.0, output="pt", **control).numpy()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        with tarfile.open(sys.argv[1]) as file:
            file.extractall(runs, filter="data")
        images = {name: generated(runs, name) for name in (*RUNS, "net")}
        for name, (script, words) in RUNS.items():  # what others stand on comes last
            subprocess.run([sys.executable, f"{script}.py", *ON, *words, f"runs_dir={runs}"], check=True)
            images[f"{name} after"] = generated(runs, name)
        np.savez_compressed(sys.argv[2], **images)
