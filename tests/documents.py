"""What the documents tell their readers to type, and a folder in which it can be typed."""

import os
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
FIRST_WORDS = ("python", "ldm", "torchrun", "make", "pip", "git", "cd", "sbatch", "srun", "export", "eval")
_MARK = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Command:
    """A command line of a document, and why it isn't run here, if so."""

    line: str
    where: str
    not_run: str | None = None


def commands(path: Path) -> list[Command]:
    """The command lines of a document, of fenced `sh` blocks and of indented ones, in order.

    `<!-- not run: REASON -->` on the line before a block leaves the block out.
    """
    found, fence, mark, joined = [], None, None, ""
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        opened = re.match(r"\s*```(\w*)", text)
        if opened:
            fence = opened[1] if fence is None else None
            mark = mark if fence is not None else None
            continue
        if marked := _MARK.match(text):
            mark = marked[1]
            continue
        inside = fence == "sh" or (fence is None and text.startswith("    "))
        if not inside:
            mark = mark if not text.strip() or fence is not None else None
            continue
        joined += text.strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        if joined.split(maxsplit=1)[:1] and joined.split(maxsplit=1)[0] in FIRST_WORDS:
            found.append(Command(joined, f"{path.name}:{number}", mark))
        joined = ""
    return found


def documents() -> list[Path]:
    """README and docs/, those in English: the Chinese README is held to the same commands by a test."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def environment(folder: Path) -> dict[str, str]:
    """Of a shell in `folder`, in which `python` and `ldm` are this tree's and all work is cut to two steps."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "ldm").write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'ldm'\nfrom ldm.commands.cli import main\nmain()\n"
    )
    (tools / "ldm").chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "LDM_FAST": "2", "OMP_NUM_THREADS": "1"}


def workspace(folder: Path) -> Path:
    """A folder with what a reader has: the scripts of a clone, photos, a mask, prompts, and MNIST."""
    for script in [*ROOT.glob("*.py"), *(ROOT / name for name in ("benchmarks", "docs", "notebooks"))]:
        (folder / script.name).symlink_to(script)
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(160):  # of which 8 are for validation, as many as a distance needs
        colour = rng.integers(0, 256, (1, 1, 3), dtype=np.uint8)
        Image.fromarray(np.repeat(np.repeat(colour, 70, 0), 80, 1)).save(photos / f"{i}.png")
        (photos / f"{i}.txt").write_text(f"a plain colour, number {i}")
    zip_folder(photos, folder / "photos.zip")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "cat.png")
    Image.fromarray((mask > 0).astype(np.uint8)).save(folder / "scene.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "small.png")
    (folder / "prompts.txt").write_text("a cat on a red background\na dog on a blue background\n")
    mnist(folder / "data")
    return folder


def zip_folder(folder: Path, out: Path) -> None:
    import zipfile

    with zipfile.ZipFile(out, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)


def mnist(root: Path, n: int = 64) -> None:
    """Files of MNIST's format, with noise in them, so that no test needs a network."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + labels.tobytes())
