"""`make demo`: both stages on emoji scenes, pictures of captions that no training image had, and a score.

Nothing is picked: the captions are drawn by a fixed seed from combinations that were kept out of training, and the grid
shows the first of them in order.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import ldm
from ldm.artifact import to_json
from ldm.data.emoji import Emoji
from ldm.data.table import Table
from ldm.demo_page import write_page
from ldm.devices import available
from ldm.evaluation.reader import Reader, score, train_reader
from ldm.images import grid, save_png

CAPTIONS, TWO_OBJECTS, SEED = 200, 150, 0
OUT = Path("runs/demo")


def main() -> None:
    """Trains what isn't trained yet, draws, scores, and says what to try next."""
    start = time.monotonic()
    timings = {
        "stage one": step("python train_vae.py data=emoji resume=true"),
        "stage two": step("python train_ldm.py data=emoji resume=true"),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    emoji = Emoji()
    print("\ntraining a classifier that reads scenes, to score the pictures", flush=True)
    begun = time.monotonic()
    reader = train_reader(emoji)
    _, val = emoji.tables(Path("runs/cache/data"))
    report = {"real validation scenes": score_of(reader, val, None)}
    report["their VAE reconstructions (the ceiling)"] = score_of(reader, val, ldm.load("runs/vae/emoji"))
    model = ldm.load("runs/ldm/emoji", available())
    columns, captions = emoji.held_out_captions(CAPTIONS, TWO_OBJECTS, SEED)
    timings["a classifier that reads scenes"] = time.monotonic() - begun
    begun = time.monotonic()
    images = model(captions, seed=SEED, output="pt", batch_size=50).cpu()
    timings[f"drawing {CAPTIONS} pictures"] = time.monotonic() - begun
    report["pictures of held-out captions"] = score(reader, images, columns)
    about = {"captions": captions[:40], "seed": SEED, **model.sampling}
    save_png(grid(images[:40], 8), OUT / "grid.png", {"ldm": json.dumps(about)})
    (OUT / "captions.txt").write_text("\n".join(captions) + "\n")
    (OUT / "score.json").write_bytes(to_json(report))
    timings["in all"] = time.monotonic() - start
    page = write_page(OUT, report, images[:40], captions[:40], timings)
    show(report, timings["in all"])
    print(f"The same as a page, with the curves: {page}")


def step(command: str) -> float:
    """Runs one of the README's own commands; the seconds that it took."""
    print(f"\n$ {command}", flush=True)
    begun = time.monotonic()
    result = subprocess.run([sys.executable, *command.split()[1:]], check=False)
    if result.returncode:
        sys.exit(result.returncode)
    return time.monotonic() - begun


@torch.inference_mode()
def score_of(reader: Reader, table: Table, vae: ldm.AutoencoderKL | None, n: int = 1000) -> dict[str, float]:
    """How real scenes are read, or their reconstructions."""
    rows = np.arange(min(n, len(table)))
    images = table.batch(rows, ["image"])["image"]
    if vae is not None:
        images = torch.cat([vae.decode(vae.encode(batch).mode()).clamp(-1, 1) for batch in images.split(100)])
    return score(
        reader, images, {name: np.asarray(column)[rows] for name, column in table.columns.items() if name != "text"}
    )


def show(report: dict[str, dict[str, float]], seconds: float) -> None:
    print(f"\nread rightly, of {CAPTIONS} pictures ({TWO_OBJECTS} of them with two objects) and of real scenes:")
    names = list(next(iter(report.values())))
    print(" " * 42 + "".join(f"{name.replace('all, ', ''):>12}" for name in names))
    for title, row in report.items():
        print(f"{title:<42}" + "".join(f"{row[name]:12.3f}" for name in names))
    print(f"\n{seconds:.0f} s in all. Look at {OUT / 'grid.png'}; its captions are in {OUT / 'captions.txt'}.")
    print("Next: python sample.py run=emoji prompt='a cat above a rocket on a blue background' n=4 out=cat.png")


if __name__ == "__main__":
    main()
