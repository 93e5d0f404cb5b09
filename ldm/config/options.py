"""What each option is: its type, its range, and whether its value is raw text.

A constructor's signature is the schema: the options of a class are read from it. This module only has what no signature
contains. Defaults, and the sentence on what an option means, are in conf/*.yaml. Lightning and our own classes are
imported when a section is looked up, so --help needs none of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ldm.common import annotations
from ldm.common.errors import UserError

# Options whose value is raw text up to the end of the word, by the last part of their key: text in any language, where
# `${` is text too, and names and paths, which a sweep splits at commas.
TEXTS = {"prompt", "prompt_2", "negative", "negative_2", "text", "auth", "webhook", "proxy", "word", "init", "trigger"}
NULL_IS_TEXT = {"prompt", "prompt_2", "negative", "negative_2", "text"}  # of these `null` is a word
PATHS = {"prompts_file", "out", "image", "mask", "map", "embed_image", "then"}
PATHS |= {"lora", "control_image", "control_from", "run", "base", "first_stage", "autoguide", "name", "decoder"}
PATHS |= {"reference", "samples", "features", "save_reference", "inception", "dinov2", "clip"}
PATH_ENDINGS = ("path", "root", "dir")
SECTIONS_WITH_TEXT = ("data", "finetune", "distance")
SWITCHES = ("lora", "finetune.lora")  # a path where images are generated, true or false where a student is trained

# Options that are one value, or a mapping with one for each condition or ControlNet of the model that is loaded later.
BY_NAME = ("guidance", "control_image", "control_from", "control_scale", "control_start", "control_end")


@dataclass(frozen=True)
class Option:
    """The values that an option takes.

    `kind` is a type annotation; None stands for the type of its default in YAML. `low` and `high` bound numbers.
    """

    kind: Any = None
    low: float = -math.inf
    high: float = math.inf
    nullable: bool = True

    def check(self, value: Any, default: Any, where: str) -> None:
        """Raises UserError if the value of the option `where` is of a wrong type or out of range."""
        kind = self.kind
        if kind is None or not (default is None or annotations.fits(default, kind)):
            kind = _kind_of(default)
        if value is not None or not self.nullable:
            annotations.check_value(value, kind, where)
        if isinstance(value, (int, float)) and not self.low <= value <= self.high:
            bounds = f"at least {self.low}" if self.high == math.inf else f"between {self.low} and {self.high}"
            raise UserError(f"{where}={value}: has to be {bounds}.")


Options = dict[str, Option]


def options_of(place: str) -> Options:
    """The options declared for a command or a section: `place` is the name of its script, or the section's key."""
    return _DECLARED[place]() if place in _DECLARED else {}


def _kind_of(default: Any) -> Any:
    """The type of an option by its default in YAML: if that is a number, a switch or a list of numbers, the option must
    be one too; otherwise it may be anything."""
    if isinstance(default, (bool, int, float)):
        return type(default)
    if isinstance(default, list) and default and annotations.fits(default, list[float]):
        return list[float]
    return Any


def _from_signature(function: Any, except_for: Sequence[str] = ()) -> Options:
    kinds = annotations.optional_parameters(function, except_for)
    return {name: Option(kind) for name, kind in kinds.items()}


def _train() -> Options:
    return {
        "compile": Option(bool | str),
        "batch_size": Option(int | Literal["auto"], low=1),
        "skip_bad_batches": Option(low=0),
        "balance": Option(str),
        "loss_mask": Option(Literal["mask", "loss_mask"]),
        "unmasked_weight": Option(low=0, high=1),
    }


def _train_vae() -> Options:
    own = {
        "train": Option(Literal["all", "decoder"], nullable=False),
        "beta": Option(low=0),
        "beta_warmup_steps": Option(low=0),
    }
    return _train() | own


def _train_ldm() -> Options:
    own = {
        "latents": Option(Literal["cached", "online"], nullable=False),
        "latents_dtype": Option(Literal["float32", "float16"], nullable=False),
    }
    return _train() | own


def _sample() -> Options:
    """Those arguments of `LatentDiffusion.generate` that sample.py offers under the same names, and the samplers'
    options."""
    from ldm.model.latent_diffusion import LatentDiffusion

    generate = _from_signature(LatentDiffusion.generate)
    shared = "n strength feather pad noise_level size original_size crop target_size guess_mode"
    shared += " control_scale control_start control_end"
    return {
        **{name: generate[name] for name in shared.split()},
        **{f"negative_{name}": generate[name] for name in ("original_size", "crop", "target_size")},
        **_sampling(),
        "compile": Option(bool | str),
        "seed": Option(int),
        "batch_size": Option(int, low=1),
        "columns": Option(int, low=1),
        "autoguidance": Option(float),
    }


def _evaluate() -> Options:
    sampling = _sampling()
    return {
        **{name: sampling[name] for name in ("sampler", "steps", "guidance")},
        "compile": Option(bool | str),
        "size": Option(int | Sequence[int]),
        "n": Option(low=1),
        "seeds": Option(low=1),
        "reference_n": Option(low=1),
        "batch_size": Option(low=1),
    }


def _score() -> Options:
    sampling = _sampling()
    return {
        **{name: sampling[name] for name in ("sampler", "steps", "guidance")},
        "compile": Option(bool | str),
        "conditions": Option(Literal["train", "val"], nullable=False),
        "resizing": Option(Literal["clean", "tensorflow", "pytorch"], nullable=False),
        "n": Option(int, low=1, nullable=False),
        "seed": Option(int, low=0, nullable=False),
        "batch_size": Option(int, low=1, nullable=False),
    }


def _augment() -> Options:
    return {"batch_size": Option(low=1)}


def _check() -> Options:
    return {"steps": Option(int, low=0, nullable=False), "batch_size": Option(int | Literal["auto"], low=1)}


def _app() -> Options:
    return {"compile": Option(bool | str)}


def _trainer() -> Options:
    from lightning.pytorch import Trainer

    return _from_signature(Trainer.__init__)


def _optimizer() -> Options:
    from ldm.training.optimization.learning_rate import LearningRate

    own = {
        "lr": Option(float | Literal["auto"], low=0),
        "weight_decay": Option(low=0),
        "warmup_steps": Option(int, low=0),
    }
    return _from_signature(LearningRate, except_for=("total_steps",)) | own


def _loss() -> Options:
    return {name: Option(float | Literal["auto"]) for name in ("perceptual", "adversarial")}


def _ema() -> Options:
    return {
        "decay": Option(low=0, high=1),
        "lengths": Option(Sequence[float] | None),
        "snapshots": Option(low=2),
    }


def _checkpoint() -> Options:
    return {
        "every_n_steps": Option(low=1),
        "keep_last": Option(low=1),
        "keep_every_n_steps": Option(int, low=1),
        "best": Option(str),
        "mode": Option(Literal["min", "max"]),
        "patience": Option(int, low=1),
    }


def _captions() -> Options:
    return {
        "shuffle": Option(bool, nullable=False),
        "keep_first": Option(int, low=0, nullable=False),
        "drop": Option(low=0, high=1, nullable=False),
        "separator": Option(str, nullable=False),
        "wildcards": Option(bool, nullable=False),
    }


def _distance() -> Options:
    return {"n": Option(int, low=0), "steps": Option(int, low=1), "features": Option(str)}


def _samples() -> Options:
    return {"every_n_steps": Option(low=0), "n": Option(low=1)}


def _loader() -> Options:
    from ldm.data.datamodule import BatchModule

    return _from_signature(BatchModule.__init__) | {"workers": Option(int | Literal["auto"], low=0)}


def _diffusion() -> Options:
    from ldm.diffusion import Denoiser

    return _from_signature(Denoiser.__init__) | {"sampling": Option(Any)}


def _sampling() -> Options:
    from ldm.diffusion.sampling_options import sampling_kinds

    return {name: Option(kind) for name, kind in sampling_kinds().items()}


def _logger() -> Options:
    return {name: Option(Any) for name in ("csv", "tensorboard", "wandb", "mlflow")}


def _lightning_logger(name: str) -> Callable[[], Options]:
    def options() -> Options:
        """Every argument of the logger's constructor but those that a run sets itself."""
        from lightning.pytorch import loggers

        return _from_signature(getattr(loggers, name).__init__, except_for=("save_dir", "version"))

    return options


_DECLARED: dict[str, Callable[[], Options]] = {
    "train_vae": _train_vae,
    "train_ldm": _train_ldm,
    "sample": _sample,
    "evaluate": _evaluate,
    "score": _score,
    "augment": _augment,
    "check": _check,
    "app": _app,
    "trainer": _trainer,
    "optimizer": _optimizer,
    "loss": _loss,
    "ema": _ema,
    "checkpoint": _checkpoint,
    "captions": _captions,
    "distance": _distance,
    "samples": _samples,
    "loader": _loader,
    "diffusion": _diffusion,
    "diffusion.sampling": _sampling,
    "logger": _logger,
    "logger.tensorboard": _lightning_logger("TensorBoardLogger"),
    "logger.wandb": _lightning_logger("WandbLogger"),
    "logger.mlflow": _lightning_logger("MLFlowLogger"),
}
