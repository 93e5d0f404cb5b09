"""ControlNet: do samples follow control images that it wasn't trained on?

    python benchmarks/control.py BASE [control=canny|map] [SECONDS] [--runs DIR] [--out PNG] [KEY=VALUE ...]

BASE is a trained run of emoji scenes. A ControlNet is trained on it by `train_ldm.py finetune=controlnet` for SECONDS
(480) of wall-clock time. Then images are generated with the prompts and the control images of scenes whose combinations
aren't in training, and scored by F1 against the control images. So are the base's images of the same prompts and, as
the ceiling, reconstructions of the real images by the autoencoder:

- canny: edges found in the image, correct within a pixel;
- map: pixels that a segmentation network, trained on real pairs of the training split, reads as an object, correct if
  the map has that object there.

The score that counts is that of scenes whose caption doesn't determine where its object is: one small object, anywhere.
Two objects fill a scene of 32 pixels, so their caption determines nearly everything: another scene of the same caption,
as a perfect base would generate it, has an edge F1 of 0.7 there (0.38 where the place is open, 0.5 for any two scenes).
The figures of all kinds of scenes are given too.

The output image shows, scene by scene, control image, sample, the base's image and the real image.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from map_to_image import read_maps, train_segmenter
from recipe import report, train
from torch import Tensor

import ldm
from ldm.data.sources.emoji import Emoji
from ldm.data.storage.table import Table
from ldm.training.finetune.controlnet import alternating


def f1(precision: Tensor, recall: Tensor) -> float:
    """The mean over scenes of 2 / (1 / precision + 1 / recall), both (N,)."""
    return float((2 * precision * recall / (precision + recall).clamp_min(1e-9)).mean())


def edge_f1(found: Tensor, wanted: Tensor, tolerance: int = 1) -> float:
    """F1 of edges (N, 1, H, W) of 0 and 1: one is correct if the other has one at most `tolerance` pixels away."""

    def share(of: Tensor, near: Tensor) -> Tensor:
        reach = F.max_pool2d(near, 2 * tolerance + 1, 1, tolerance)
        return (of * reach).sum((1, 2, 3)) / of.sum((1, 2, 3)).clamp_min(1)

    return f1(share(found, wanted), share(wanted, found))


def map_f1(read: Tensor, wanted: Tensor) -> float:
    """F1 of maps of ids (N, H, W), 0 for background: a pixel of an object is correct if both have the same id."""
    right = ((read == wanted) & (wanted > 0)).sum((1, 2))
    return f1(right / (read > 0).sum((1, 2)).clamp_min(1), right / (wanted > 0).sum((1, 2)).clamp_min(1))


class Judge:
    """Scores images (N, 3, H, W) against the control images of their scenes."""

    def __init__(self, control: str, table: Table, hint, steps: int):
        self.hint = hint
        is_map = control == "map"
        self.segmenter = train_segmenter(table, len(table.map_classes), steps, seed=1) if is_map else None

    def wanted(self, batch: dict) -> Tensor:
        return batch["map"] if self.segmenter is not None else self.hint(batch["image"])[:, :1]

    def __call__(self, images: Tensor, wanted: Tensor) -> float:
        if self.segmenter is not None:
            return map_f1(read_maps(self.segmenter, images), wanted)
        return edge_f1(self.hint(images)[:, :1], wanted)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a run of train_ldm.py on emoji scenes")
    parser.add_argument("--runs", default="runs", help="folder of the runs, the base's too")
    parser.add_argument("--out", default=None, help="the output image; its figures go beside it as .json")
    parser.add_argument("--n", type=int, default=100, help="scenes")
    parser.add_argument("--shown", type=int, default=12, help="scenes in the output image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*", default=[], help="seconds of training; control=; KEY=VALUE of train_ldm.py")
    args = parser.parse_intermixed_args()
    args.seconds = next((int(word) for word in args.words if word.isdigit()), 480)
    args.options = [word for word in args.words if "=" in word and not word.startswith("control=")]
    args.control = next((word[8:] for word in args.words if word.startswith("control=")), "canny")
    if args.control not in ("canny", "map"):
        parser.error(f"control={args.control}: this scores canny and map.")
    return args


def scored(args: argparse.Namespace, model, hint, judge, val: Table, rows: np.ndarray) -> tuple[dict, Tensor]:
    """Figures of the scenes `rows`, and their images: control image, sample, the base's, real; scene by scene."""
    batch = val.batch(rows, {"image", "text", "map", hint.column})
    wanted = judge.wanted(batch)
    hints, options = hint(batch[hint.column]), {"seed": args.seed, "output": "pt", "batch_size": 50}
    generated = model(batch["text"], control=hints, **options)
    plain = model(batch["text"], **options)  # without a control image the model is its base
    with torch.inference_mode():
        decoded = torch.cat([model.decode(model.encode(images)) for images in batch["image"].split(50)])
    kinds = {"real images": batch["image"], "reconstructions": decoded, "samples": generated, "base": plain}
    f1s = {kind: judge(images, wanted) for kind, images in kinds.items()}
    figures = {
        "scenes": len(rows),
        "F1": f1s,
        "share of the ceiling": f1s["samples"] / f1s["reconstructions"],
        "share of the way from base to ceiling": (f1s["samples"] - f1s["base"])
        / (f1s["reconstructions"] - f1s["base"]),
    }
    return figures, alternating(alternating(hint.show(hints), plain), alternating(generated, batch["image"]))


def main() -> None:
    args = arguments()
    name = f"{Path(args.base).name}-{args.control}"
    options = ("finetune=controlnet", f"control={args.control}", f"base={args.base}", f"name={name}", "data=emoji")
    spent = train("train_ldm.py", args.seconds, args.runs, *options, *args.options)
    run = Path(args.runs) / "ldm" / name
    model = ldm.load(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    data = {key: value for key, value in config["data"].items() if key != "class" and value is not None}
    table, val = Emoji(**{"size": model.preprocess.height} | data).tables(Path(config["cache_dir"]) / "data")
    hint = model.adapters[name][0].hint
    judge = Judge(args.control, table, hint, 300 if args.seconds >= 60 else 20)
    is_open = (np.asarray(val.columns["second"]) < 0) & (np.asarray(val.columns["size"]) == 0)
    figures, images = scored(args, model, hint, judge, val, np.flatnonzero(is_open)[: args.n])
    of_all, _ = scored(args, model, hint, judge, val, np.arange(min(args.n, len(val))))
    about = {
        "wanted": {"share of the ceiling": 0.6},
        "seconds": spent,
        "sampling": model.sampling,
    }
    out = Path(args.out or f"{args.runs}/{name}.png")
    report(
        {"control": args.control, **figures, "all kinds of scenes": of_all, **about}, images[: 4 * args.shown], 8, out
    )


if __name__ == "__main__":
    main()
