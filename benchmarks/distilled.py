"""What a user saves who distils a model: four unguided evaluations against diffusers' defaults, 50 guided steps.

The base is a StableDiffusionPipeline with random weights, which diffusers samples with its own defaults (50 steps,
guidance 7.5). The student (`finetune=distill`) has the same network, text encoder and decoder, and takes four steps
without guidance. Its weights don't change the time, so it isn't trained here; its quality is `few_steps.py`'s subject.
"""

import tempfile
from typing import Any

import torch

import ldm
from benchmarks.paired import alternate, compared, rows
from benchmarks.sampling import IMAGES, PROMPT, pipeline
from ldm.evaluation.scoring import NetworkCalls


@torch.inference_mode()
def measure(side: int, rounds: int, folder: str) -> dict[str, Any]:
    theirs = pipeline(side)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder)
    student = ldm.load(folder)
    size = 4 * side

    def few() -> None:
        student(PROMPT, n=IMAGES, size=size, seed=0, sampler="euler", steps=4, guidance=1, output="pt")

    def defaults() -> None:
        theirs([PROMPT] * IMAGES, height=size, width=size, output_type="pt")

    with NetworkCalls(student.denoiser.network) as count:
        few()
    found = compared(alternate({"ours": few, "diffusers' defaults": defaults}, rounds))
    return found | {"our evaluations of each image": count.rows / IMAGES}


def main(rounds: int = 3) -> dict[str, Any]:
    report = {}
    for side in (8, 16):
        with tempfile.TemporaryDirectory() as folder:  # the text encoder is read from it when it is needed
            report[f"latents of {side}x{side}"] = rows(measure(side, rounds, folder), 1.0)
    return report
