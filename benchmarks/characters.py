"""How well a run of stage two generates the characters, by a judge that reads their attributes.

    python benchmarks/characters.py RUN DATA [n=512] [steps=25] [guidance=3] [runs_dir=runs] [costs=true]

DATA is a folder with judge.py, characters_train.zip and characters_heldout.zip; the judge is trained once, to
runs/judge.pt. An image is generated for each of `n` held-out captions, with `steps` guided steps. The reconstructions
of the held-out images by the run's autoencoder are judged too: stage two can't be expected to do better. `costs` also
generates with 6 guided steps (12 network evaluations) and with 50 (100).
"""

import json
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ldm
from ldm.evaluation.measures.image_set import from_bytes, to_bytes
from ldm.model.latent_diffusion import LatentDiffusion


class Judge:
    """The data folder's judge.py, by its own commands."""

    def __init__(self, data: Path, work: Path):
        self.data, self.work, self.weights = data, work, work / "judge.pt"
        if not self.weights.exists():
            print("training the judge", flush=True)
            self._run("train", data / "characters_train.zip", self.held_out, self.weights)

    @property
    def held_out(self) -> Path:
        return self.data / "characters_heldout.zip"

    def score(self, images: torch.Tensor, index: np.ndarray) -> dict[str, Any]:
        """The judge's figures for `images` (N, 3, 32, 32) in [-1, 1], generated for the held-out rows `index`."""
        path = self.work / "judged.npz"
        np.savez(path, image=to_bytes(images).permute(0, 2, 3, 1).numpy(), index=index)
        said = self._run("score", self.weights, self.held_out, path)
        path.unlink()
        return json.loads(said.strip().splitlines()[-1])

    def rows(self) -> list[dict[str, Any]]:
        with zipfile.ZipFile(self.held_out) as file:
            return [json.loads(line) for line in file.read("metadata.jsonl").decode().splitlines()]

    def images(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        """The held-out images of `rows`, (N, 3, 32, 32) in [-1, 1]."""
        from PIL import Image

        with zipfile.ZipFile(self.held_out) as file:
            arrays = [np.array(Image.open(BytesIO(file.read(row["file_name"]))).convert("RGB")) for row in rows]
        return from_bytes(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))

    def _run(self, *words: Any) -> str:
        command = [sys.executable, str(self.data / "judge.py"), *map(str, words)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(run: str, data: str, *words: str) -> dict[str, Any]:
    """Prints the judge's figures, and returns them by set of images."""
    given = dict(word.partition("=")[::2] for word in words)
    runs = Path(given.get("runs_dir", "runs"))
    n, steps, guidance = int(given.get("n", 512)), int(given.get("steps", 25)), given.get("guidance")
    judge = Judge(Path(data), runs)
    path = runs / "ldm" / run
    model = ldm.load(path if path.exists() else run)
    if not isinstance(model, LatentDiffusion):
        sys.exit(f"{run} is no run of stage two.")
    rows = judge.rows()
    index = np.sort(np.random.default_rng(0).permutation(len(rows))[:n])
    captions = [rows[i]["text"] for i in index]
    options = {"guidance": float(guidance)} if guidance else {}
    with torch.inference_mode():
        real = judge.images([rows[i] for i in index])
        again = torch.cat([model.decode(model.encode(batch)) for batch in real.split(64)])
    found = {"real held-out images": judge.score(real, index), "their reconstructions": judge.score(again, index)}
    for name, count in wanted(steps, given.get("costs") == "true"):
        start = time.monotonic()
        generated = model(captions, seed=0, output="pt", batch_size=64, steps=count, **options)
        found[name] = judge.score(generated, index) | {"seconds": round(time.monotonic() - start)}
    for name, figures in found.items():
        print(f"{name}: {json.dumps(figures)}", flush=True)
    return found


def wanted(steps: int, costs: bool) -> list[tuple[str, int]]:
    """The sets of images to generate, and their number of steps."""
    extra = [("12 network evaluations", 6), ("100 network evaluations", 50)] if costs else []
    return [(f"{steps} guided steps", steps), *extra]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
