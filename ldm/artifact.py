"""The model folder: plain data that is all a model needs.

    config.json          the spec that the model is built from, by names out of the registry, tokenizer included
    model.safetensors    the weights
    manifest.json        size and SHA-256 of both

No name, date or path is inside: equal models give equal files. Loading is strict and never runs code from a file.
"""

import contextlib
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ldm.common.errors import UserError
from ldm.common.registry import build, spec_of
from ldm.common.tensors import bytes_of, write_safetensors
from ldm.networks import AutoencoderKL
from ldm.networks.computing.finite import not_finite

FORMAT = 1
FILES = ("config.json", "model.safetensors")
MOST_NUMBER = 10**7  # in a config out of a file
MOST_PIXELS = 2**28


def save(model: Any, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Writes `model` (of a registered class) as a model folder, or leaves the one that is there as it was.

    `weights` are the model's own where it doesn't hold them itself, being spread over several processes.
    """
    from ldm.common.files import Hashing, make_folder, replace_together

    if hasattr(model, "bare"):  # what is put on a model isn't in its file
        model.bare("save")
    folder = make_folder(Path(folder))
    with _bundled(model, folder):
        config = to_json(describe(model))
    state, manifest = weights or model.state_dict(), {}

    def hashed(name: str, write: Callable[[Any], object]) -> Callable[[BinaryIO], None]:
        def run(file: BinaryIO) -> None:
            write(hashing := Hashing(file))
            manifest[name] = hashing.record

        return run

    writers: dict[str, Callable[[BinaryIO], object]] = {
        "config.json": hashed("config.json", lambda file: file.write(config)),
        "model.safetensors": hashed("model.safetensors", lambda file: write_safetensors(file, state)),
        "manifest.json": lambda file: file.write(to_json({"format": FORMAT, "files": manifest})),
    }
    replace_together(folder, writers, seal="manifest.json")
    return folder


@contextlib.contextmanager
def _bundled(model: nn.Module, folder: Path) -> Iterator[None]:
    """Copies into `folder` what the model's parts have outside and want to be bundled; their specs name the copies."""
    parts: list[Any] = [part for part in model.modules() if getattr(part, "bundled", False)]
    specs = [part._spec for part in parts]
    for part in parts:
        part.bundle(folder)
    yield
    for part, spec in zip(parts, specs, strict=True):
        object.__setattr__(part, "_spec", spec)


def load(folder: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model in a model folder, in eval mode. Refuses what is damaged, incomplete or of unknown make."""
    folder = Path(folder)
    verify(folder)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        if not isinstance(config, Mapping):
            raise ValueError("config.json holds no mapping")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder} can't be read as a model ({error}); restore it.") from None
    return restore(config, weights, str(folder)).to(device)


def describe(model: nn.Module) -> dict[str, Any]:
    """What `restore` needs beside the weights."""
    preprocess = getattr(model, "preprocess", None)
    described = {"format": FORMAT, "model": spec_of(model)}
    return described | ({"preprocess": spec_of(preprocess)} if preprocess is not None else {})


def restore(config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> nn.Module:
    """The model that `config` describes with `weights`: every name must match, and every shape."""
    if config.get("format") != FORMAT:
        raise UserError(f"{where}: format {config.get('format')!r} is not one that this version reads ({FORMAT}).")
    if not isinstance(config.get("model"), Mapping):
        raise UserError(f"{where}: its config says of no model how it is built; restore it.")
    model = _build_empty(config["model"], len(weights), where)
    report_mismatch(model.state_dict(), weights, where)
    refuse_not_finite(weights, where)
    model.load_state_dict(weights, strict=True, assign=True)
    if "preprocess" in config:
        preprocess = _built(lambda: build(config["preprocess"]), where)
        shape = _built(lambda: tuple(preprocess.shape), where)
        if math.prod(shape) > MOST_PIXELS:
            raise UserError(f"{where}: its images of {shape} are larger than any that this reads.")
        model.preprocess = preprocess
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _build_empty(spec: Mapping[str, Any], weights: int, where: str) -> nn.Module:
    """The model on the meta device: nothing takes memory or is initialised before names and shapes are known to fit.

    What a config could still ask for is bounded before it is built: numbers by MOST_NUMBER, and the parameters by those
    that the file has, of which a config of a thousand million blocks would have more.
    """
    _bound_numbers(spec, where)
    thread, count = threading.get_ident(), 0

    def counted(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > 2 * weights + 1000:
                raise UserError(f"{where}: its config describes far more weights than the {weights} that it has.")

    hook = register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            model = _built(lambda: build(spec), where)
    finally:
        hook.remove()
    if not isinstance(model, nn.Module):
        raise UserError(f"{where}: its config describes a {type(model).__name__}, which is no model.")
    return model


def _built(make: Callable[[], Any], where: str) -> Any:
    try:
        return make()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # a class's own complaint about an argument of the wrong kind
        raise UserError(f"{where}: its config makes no model ({type(error).__name__}: {error}).") from None


def _bound_numbers(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for inner in value.values():
            _bound_numbers(inner, where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _bound_numbers(inner, where)
    elif isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise UserError(f"{where}: its config asks for a size of {str(value)[:20]}, which no model has.")


def report_mismatch(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError naming what is missing, unexpected, of another shape or no real numbers."""
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    problems += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems += [
        f"{name} is {str(given[name].dtype).removeprefix('torch.')}, where weights are real numbers"
        for name, tensor in wanted.items()
        if name in given and tensor.is_floating_point() and not given[name].is_floating_point()
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UserError(f"{where}: the weights don't fit the model: {shown}.")


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError naming weights with a value that is infinite or no number."""
    if bad := not_finite(weights):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"{where}: {bad[0]}{more} isn't finite: training diverged or the file is damaged; take an earlier "
            "checkpoint, or get the file anew."
        )


def verify(folder: Path) -> None:
    """Checks a model folder against its manifest."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise UserError(
            f"{folder} holds no whole model: manifest.json is missing; was the run stopped before it saved one?"
        )
    try:
        files = json.loads(manifest.read_text())["files"]
        wanted = {name: files[name] for name in FILES}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{manifest} is damaged; restore the folder or load a checkpoint of the run.") from None
    for name, recorded in wanted.items():
        if not (folder / name).is_file() or _fingerprint(folder / name) != recorded:
            raise UserError(f"{folder / name} is damaged: size or SHA-256 differ from the manifest; restore it.")


def model_hash(model: nn.Module) -> str:
    """SHA-256 over spec and weights: what names a model in caches and adapters."""
    digest = hashlib.sha256(to_json(describe(model)))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def encoder_hash(first_stage: Any) -> str:
    """SHA-256 over what latents depend on: the weights of an autoencoder's encoding half, and how these are read.

    What names a first stage where its latents count, in their cache and in runs of stage two: it stays the same when
    the decoder is trained further, and whatever was preprocessed for it. Of other classes, whose halves aren't known,
    it is `model_hash`.
    """
    if type(first_stage) is not AutoencoderKL:
        return model_hash(first_stage)
    groups = first_stage.encoder.conv_norm_out.num_groups
    read = {"encoder of": "AutoencoderKL", "stem": first_stage.stem, "groups": groups}
    digest = hashlib.sha256(to_json(read))
    for name, tensor in sorted(first_stage.weights_of(first_stage.ENCODING).items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def to_json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
