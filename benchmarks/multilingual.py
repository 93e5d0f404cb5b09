"""Captions in three languages: one built-in text encoder, trained on emoji scenes told in English, Chinese and Arabic.

    python benchmarks/multilingual.py [max_time=00:00:09:00] [n=240] [runs_dir=runs] [out=multilingual.png]

Trains stage one (`emoji`, unless there is one) and stage two (`multilingual`, unless it is finished); each visit of a
scene draws one of its three captions. Then the same scenes, of combinations that training never showed, are asked for
in each language, and a classifier of real scenes reads the pictures: the share in which each part is what the caption
says. The picture has the same scenes in a row for each language.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import ldm
from ldm.commands import cli
from ldm.data import Emoji
from ldm.evaluation.measures.scene_reader import Reader, score, train_reader
from ldm.images import grid

LANGUAGES = ("en", "zh", "ar")
SHOWN = 8  # scenes in the picture


def train(runs: Path, max_time: str) -> ldm.LatentDiffusion:
    """Both stages, as far as they aren't there."""
    if not (runs / "vae" / "emoji" / "DONE").exists():
        cli.run("train_vae", ["data=emoji", f"runs_dir={runs}", "resume=true"])
    words = ["data=emoji", f"data.languages=[{','.join(LANGUAGES)}]", "name=multilingual", "first_stage=emoji"]
    cli.run("train_ldm", [*words, f"runs_dir={runs}", f"trainer.max_time={max_time}", "resume=true"])
    return ldm.load(runs / "ldm" / "multilingual")


def measure(
    model: ldm.LatentDiffusion, reader: Reader, emoji: Emoji, n: int
) -> tuple[dict[str, dict[str, float]], Tensor]:
    """By language what the reader says of the same n held-out scenes, and the first pictures of each."""
    report, pictures = {}, []
    for language in LANGUAGES:
        attributes, captions = emoji.held_out_captions(n, two=round(0.7 * n), language=language)
        images = model(captions, seed=0, output="pt")
        report[language] = score(reader, images, attributes)
        pictures.append(images[:SHOWN])
        print(f"{language}: {captions[0]}", flush=True)
    return report, torch.cat(pictures)


def main() -> None:
    options = {"max_time": "00:00:09:00", "n": "240", "runs_dir": "runs", "out": "multilingual.png"}
    options |= dict(word.split("=", 1) for word in sys.argv[1:])
    emoji = Emoji(languages=LANGUAGES)
    model = train(Path(options["runs_dir"]), options["max_time"])
    report, pictures = measure(model, train_reader(emoji), emoji, int(options["n"]))
    parts = list(report["en"])
    print("  ".join(["", *parts]))
    for language, figures in report.items():
        print("  ".join([language, *(f"{figures[part]:.3f}".rjust(len(part)) for part in parts)]))
    grid(pictures, SHOWN).save(options["out"])
    print(f"the same scenes in {', '.join(LANGUAGES)}: {options['out']}")


if __name__ == "__main__":
    main()
