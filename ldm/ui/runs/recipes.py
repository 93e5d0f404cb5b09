"""Options to start from in the form of a new run, for what people train most."""

from dataclasses import dataclass

FOLDER = "FOLDER"  # stands for the visitor's folder or .zip of images


@dataclass(frozen=True)
class Recipe:
    """What to train: a title, the stage, and options in which {base} is a trained run and {folder} one of images."""

    title: str
    stage: str
    options: str

    def filled(self, base: str | None) -> str:
        """The options, with words in capitals where the visitor still has to write something."""
        return self.options.format(base=base or "RUN", folder=FOLDER)


RECIPES = (
    Recipe("LoRA on a few images", "ldm", "finetune=lora base={base} data=folder data.root={folder} rank=8"
           " trainer.max_steps=500"),
    Recipe("Fine-tune the whole model", "ldm", "finetune=full base={base} data=folder data.root={folder}"
           " trainer.max_steps=1000"),
    Recipe("Fast (distilled) model in few steps", "ldm", "finetune=distill base={base} data=folder data.root={folder}"),
    Recipe("New model, first its autoencoder", "vae", "data=folder data.root={folder} data.size=64"
           " trainer.max_steps=5000"),
    Recipe("New model, then its diffusion", "ldm", "data=folder data.root={folder} data.size=64"
           " first_stage=AUTOENCODER trainer.max_steps=20000"),
)  # fmt: skip


def recipe(title: str) -> Recipe | None:
    """The recipe of a title, or None."""
    return next((of for of in RECIPES if of.title == title), None)
