"""A LoRA of an object that is new to the base: does it appear when the prompt names it, and only then?

    python benchmarks/lora_object.py BASE [SECONDS] [--object guitar] [--runs DIR] [--out PNG] [KEY=VALUE ...]

BASE is a trained run of emoji scenes. 40 captioned images of scenes with the object are written to a folder, and
prompts of the base's own kind to a file beside it, whose images by the base are mixed in as its prior. A LoRA of rank 8
is trained on both by `train_ldm.py finetune=lora` for SECONDS (300) of wall clock, all of it. Then a reader that knows
the base's objects and the new one reads

- 50 images of captions with the object that are not among the 40, and 50 without it, by base and LoRA;
- 200 images of the base's held-out captions, by the base with and without the LoRA.

The output image shows some prompts with the object, by the base and by the LoRA, and some without it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from recipe import report, train
from torch import Tensor

import ldm
from ldm.data.sources.emoji import DEFAULT_OBJECTS, OBJECTS, Emoji
from ldm.data.sources.scenes import Scenes, draw_any
from ldm.evaluation.measures.scene_reader import SceneReader, caption_scores, codes, train_reader
from ldm.images import to_pil8
from ldm.networks import DiT

IMAGES, PROMPTS, OTHERS, PRIOR = 40, 50, 200, 80
SHOWN = 8


@dataclass
class Generated:
    """Images (N, C, H, W) by the base and by the base with the LoRA, of the same prompts and seeds."""

    base: Tensor
    lora: Tensor


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a run of train_ldm.py on emoji scenes")
    parser.add_argument("seconds", type=int, nargs="?", default=300, help="wall clock of the LoRA's run")
    parser.add_argument("--object", default="guitar", choices=sorted(OBJECTS), help="that the base never saw")
    parser.add_argument("--runs", default="runs", help="folder of the runs, the base's too")
    parser.add_argument("--out", default=None, help="the output image; its figures go beside it as .json")
    parser.add_argument("--prior", type=int, default=PRIOR, help="images by the base among those of the object")
    parser.add_argument("--n", type=int, default=OTHERS, help="images of the base's other prompts")
    parser.add_argument("--reader-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", default=[], help="further KEY=VALUE of train_ldm.py")
    return parser.parse_intermixed_args()


def both_emoji(base: Path, thing: str) -> tuple[Emoji, Emoji]:
    """The source of the base's scenes, and one that knows the new object too, as the last."""
    config = yaml.safe_load((base / "config.yaml").read_text())["data"]
    options = {key: value for key, value in config.items() if key != "class" and value is not None}
    objects = list(options.get("objects") or DEFAULT_OBJECTS)
    if thing in objects:
        raise SystemExit(f"the base knows '{thing}' already; name another --object.")
    return Emoji(**options), Emoji(**options | {"objects": [*objects, thing]})


def scenes_with(emoji: Emoji, thing: int, n: int, seed: int) -> Scenes:
    """`n` scenes with the object: in half of them alone, in the others with another, in either place."""
    scenes = draw_any(emoji.held_out, 200 * n, seed)
    alone = (scenes.first == thing) & (scenes.second < 0)
    paired = (scenes.second >= 0) & ((scenes.first == thing) | (scenes.second == thing))
    return scenes[np.concatenate([np.flatnonzero(alone)[: n // 2], np.flatnonzero(paired)[: n - n // 2]])]


def unseen(scenes: Scenes, captions: list[str], seen: set[str], n: int) -> tuple[Scenes, list[str]]:
    """The first `n` whose captions aren't among those seen."""
    rows = np.array([i for i, caption in enumerate(captions) if caption not in seen][:n])
    return scenes[rows], [captions[i] for i in rows]


def write_images(emoji: Emoji, scenes: Scenes, folder: Path, seed: int) -> list[str]:
    """Writes images with their captions beside them; returns the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = scenes.captions(emoji.objects, emoji.backgrounds)
    images, _ = emoji.compose(scenes, seed)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        to_pil8(torch.from_numpy(image).float() / 127.5 - 1).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(caption + "\n")
    return captions


@torch.inference_mode()
def share_with(reader: SceneReader, images: Tensor, thing: int) -> float:
    """The share of images in which the reader finds the object, in either place."""
    logits = [reader(batch) for batch in images.split(256)]
    first, second = (torch.cat([batch[name] for batch in logits]).argmax(1) for name in ("first", "second"))
    return float(((first == thing) | (second == thing + 1)).float().mean())  # an absent second object is class 0


def main() -> None:
    args = arguments()
    base_path = Path(args.runs) / "ldm" / args.base if not Path(args.base).is_dir() else Path(args.base)
    emoji, wide = both_emoji(base_path, args.object)
    thing = len(wide.objects) - 1
    name = f"{base_path.name}-{args.object}"
    folder = Path(args.runs) / "benchmarks" / name
    captions = write_images(wide, scenes_with(wide, thing, IMAGES, args.seed), folder / "images", args.seed)
    usual = draw_any(emoji.held_out, PROMPTS + args.prior, args.seed + 1)
    words = usual.captions(emoji.objects, emoji.backgrounds)
    (folder / "prior.txt").write_text("\n".join(words[PROMPTS:]) + "\n")

    options = ["finetune=lora", f"base={base_path}", "rank=8", f"name={name}", f"seed={args.seed}"]
    images = folder / "images"  # all of them train; validation looks at them again
    options += ["data=folder", f"data.root={images}", f"data.val_root={images}"]
    # what an object needs beside attention: a U-Net's residual blocks, a DiT's feed-forward layers
    blocks = "ff" if isinstance(ldm.load(base_path).denoiser.network, DiT) else "conv1,conv2"
    options += [f"targets=[attention,{blocks}]", "text_encoder=true"]
    options += [f"prior_path={folder / 'prior.txt'}"] if args.prior else []
    spent = train("train_ldm.py", args.seconds, args.runs, *options, *args.options)

    base, tuned = ldm.load(base_path), ldm.load(Path(args.runs) / "ldm" / name)
    more = scenes_with(wide, thing, 3 * PROMPTS, args.seed + 2)
    with_object, with_captions = unseen(more, more.captions(wide.objects, wide.backgrounds), set(captions), PROMPTS)
    columns, other_captions = emoji.held_out_captions(args.n, 3 * args.n // 4, args.seed)
    prompts = {"with the object": with_captions, "without it": words[:PROMPTS], "others": other_captions}
    generated = {what: generate(base, tuned, some) for what, some in prompts.items()}
    reader = train_reader(wide, args.reader_steps)
    figures = {
        "object": args.object,
        "object in images, prompts with it": shares(reader, generated["with the object"], thing),
        "object in images, prompts without it": shares(reader, generated["without it"], thing),
        "everything right, prompts with the object": rights(
            reader, generated["with the object"], with_object.columns()
        ),
        "everything right, the base's prompts": rights(reader, generated["others"], columns),
        "reader on real scenes": real(reader, wide, args.seed),
        "bytes": sizes(base_path, Path(args.runs) / "ldm" / name),
        "merged differs by": merged_differs(tuned, with_captions[:4]),
        "seconds": spent,
        "images": {"trained on": len(captions), "prior": args.prior, "with the object": len(with_captions)},
        "wanted": {"with the object": 0.8, "without it": 0.02, "points lost": 5},
    }
    table(figures)
    rows = [
        generated["with the object"].base[:SHOWN],
        generated["with the object"].lora[:SHOWN],
        generated["without it"].lora[:SHOWN],
    ]
    report(figures, torch.cat(rows), SHOWN, Path(args.out or folder / "grid.png"))


def generate(base: ldm.LatentDiffusion, tuned: ldm.LatentDiffusion, prompts: list[str]) -> Generated:
    one, two = (model(prompts, seed=0, output="pt", batch_size=50) for model in (base, tuned))
    return Generated(one, two)


def shares(reader: SceneReader, generated: Generated, thing: int) -> dict[str, float]:
    return {"base": share_with(reader, generated.base, thing), "lora": share_with(reader, generated.lora, thing)}


def rights(reader: SceneReader, generated: Generated, columns: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: caption_scores(reader, images, columns)["all"] for name, images in vars(generated).items()}


def real(reader: SceneReader, wide: Emoji, seed: int, n: int = 400) -> float:
    """How often real scenes, with the new object among them, are read correctly in every part: the reader's ceiling."""
    scenes = draw_any(wide.held_out, n, seed + 3)
    images, _ = wide.compose(scenes, seed + 3)
    assert codes(scenes.columns())["first"].max() <= len(wide.objects)
    return caption_scores(reader, torch.from_numpy(images).float() / 127.5 - 1, scenes.columns())["all"]


def sizes(base: Path, lora: Path) -> dict[str, float]:
    files = {"base": base, "lora": lora}
    found = {name: (path / "model" / "model.safetensors").stat().st_size for name, path in files.items()}
    return found | {"share": found["lora"] / found["base"]}


def merged_differs(tuned: ldm.LatentDiffusion, prompts: list[str]) -> float:
    """The largest difference of a denoised latent between the LoRA beside the weights and in them, over one step."""
    x = torch.randn(len(prompts), tuned.first_stage.latent_channels, *_latent(tuned))
    sigma = torch.ones(len(prompts))
    with torch.inference_mode():
        cond = tuned.conditioner(tuned.conditioner.parse({"text": prompts}))
        beside = tuned.denoiser(x, sigma, cond)
        tuned.merge_lora()
        return float((tuned.denoiser(x, sigma, cond) - beside).abs().max())


def _latent(model: ldm.LatentDiffusion) -> tuple[int, int]:
    factor = model.first_stage.factor
    return model.preprocess.height // factor, model.preprocess.width // factor


def table(figures: dict) -> None:
    print(f"\n{'':40}{'base':>8}{'LoRA':>8}")
    for name, row in figures.items():
        if isinstance(row, dict) and set(row) == {"base", "lora"}:
            print(f"{name:<40}{row['base']:8.3f}{row['lora']:8.3f}")
    print(flush=True)


if __name__ == "__main__":
    main()
