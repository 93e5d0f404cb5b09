"""The model folder: all that a model needs, as plain data.

    config.json          the spec that the model is built from, by names in the registry, tokenizer included
    model.safetensors    the weights
    manifest.json        size and SHA-256 of both

It contains no name, date or path, so equal models give equal files. Loading is strict and never runs code from a file.
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
from ldm.networks import AutoencoderKL, AutoencoderTiny, VQModel
from ldm.networks.computing.finite import not_finite

FORMAT = 1
FILES = ("config.json", "model.safetensors")
MAX_NUMBER = 10**7  # in a config that was read from a file
MAX_PIXELS = 2**28


def save(model: Any, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Writes `model`, of a registered class, as a model folder. If this fails, a folder that was there is unchanged.

    `weights` are the model's state if it is spread over several processes and the model itself doesn't hold it.
    Raises UserError if the folder can't be written, or if adapters are on the model.
    """
    from ldm.common.files import Hashing, make_folder, replace_together

    if hasattr(model, "bare"):  # refuses adapters, which aren't part of the model's folder
        model.bare("save")
    folder = make_folder(Path(folder))
    with _bundled(model, folder):
        config = to_json(describe(model))
    state = weights or model.state_dict()
    manifest = {}

    def hashed(name: str, write: Callable[[Any], object]) -> Callable[[BinaryIO], None]:
        """`write`, with the size and hash of what it writes recorded in the manifest."""

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
    """Copies the outside files of parts that bundle them into `folder`. Inside the `with` block, specs name the
    copies."""
    parts: list[Any] = [part for part in model.modules() if getattr(part, "bundled", False)]
    specs = [part._spec for part in parts]
    for part in parts:
        part.bundle(folder)
    yield
    for part, spec in zip(parts, specs, strict=True):
        object.__setattr__(part, "_spec", spec)


def load(folder: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model in a model folder, in eval mode. Raises UserError if it is damaged, incomplete or of unknown kind."""
    folder = Path(folder)
    verify(folder)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        if not isinstance(config, Mapping):
            raise ValueError("config.json isn't a mapping")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder} can't be read as a model ({error}); restore it.") from None
    return restore(config, weights, str(folder)).to(device)


def describe(model: nn.Module) -> dict[str, Any]:
    """The content of config.json: what `restore` needs beside the weights."""
    described = {"format": FORMAT, "model": spec_of(model)}
    preprocess = getattr(model, "preprocess", None)
    if preprocess is not None:
        described["preprocess"] = spec_of(preprocess)
    return described


def restore(config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> nn.Module:
    """The model that `config` describes, with `weights`. `where` names it in messages.

    Raises UserError unless the weights' names and shapes are exactly those of the model and all values are finite.
    """
    if config.get("format") != FORMAT:
        raise UserError(
            f"{where}: format {config.get('format')!r} isn't one that this version reads ({FORMAT}); take a "
            "version of ldm that does."
        )
    if not isinstance(config.get("model"), Mapping):
        raise UserError(f"{where}: its config doesn't say how to build a model; restore it.")
    model = _build_empty(config["model"], len(weights), where)
    report_mismatch(model.state_dict(), weights, where)
    refuse_not_finite(weights, where)
    model.load_state_dict(weights, strict=True, assign=True)
    if "preprocess" in config:
        preprocess = _built(lambda: build(config["preprocess"]), where)
        shape = _built(lambda: tuple(preprocess.shape), where)
        if math.prod(shape) > MAX_PIXELS:
            raise UserError(f"{where}: its config asks for images of {shape}, which is too large; restore it.")
        model.preprocess = preprocess
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _build_empty(spec: Mapping[str, Any], weights: int, where: str) -> nn.Module:
    """The model on the meta device: nothing takes memory or is initialised before names and shapes are known to fit.

    A hostile config is stopped all the same: its numbers are bounded by MAX_NUMBER before anything is built, and the
    count of its parameters by that of the file's `weights` while it is.
    """
    _bound_numbers(spec, where)
    thread, count = threading.get_ident(), 0

    def counted(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > 2 * weights + 1000:
                raise UserError(
                    f"{where}: its config describes far more weights than the {weights} of its file; restore it."
                )

    hook = register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            model = _built(lambda: build(spec), where)
    finally:
        hook.remove()
    if not isinstance(model, nn.Module):
        raise UserError(f"{where}: its config describes a {type(model).__name__}, which isn't a model; restore it.")
    return model


def _built(make: Callable[[], Any], where: str) -> Any:
    try:
        return make()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # an argument of the wrong type
        raise UserError(
            f"{where}: no model can be built from its config ({type(error).__name__}: {error}); restore it."
        ) from None


def _bound_numbers(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for inner in value.values():
            _bound_numbers(inner, where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _bound_numbers(inner, where)
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise UserError(f"{where}: its config asks for a size of {str(value)[:20]}, which no model has; restore it.")


def report_mismatch(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError that names the weights that are missing, unexpected, of another shape or not real numbers."""
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    problems += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems += [
        f"{name} is {str(given[name].dtype).removeprefix('torch.')}, not real numbers"
        for name, tensor in wanted.items()
        if name in given and tensor.is_floating_point() and not given[name].is_floating_point()
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UserError(f"{where}: the weights don't fit the model: {shown}; restore the file, or take another.")


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError that names weights with a value that is infinite or NaN."""
    if bad := not_finite(weights):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"{where}: {bad[0]}{more} isn't finite: training diverged or the file is damaged; take an earlier "
            "checkpoint, or download the file again."
        )


def verify(folder: Path) -> None:
    """Checks a model folder against its manifest. Raises UserError where a file is missing or damaged."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise UserError(
            f"{folder} holds no whole model: manifest.json is missing; continue the run, which may have been stopped "
            "before it saved one, or restore the folder."
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
    """SHA-256 of spec and weights, in hexadecimal: the model's identity in caches and adapters."""
    digest = hashlib.sha256(to_json(describe(model)))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def encoder_hash(first_stage: Any) -> str:
    """SHA-256 of what latents depend on, in hexadecimal: the weights of an autoencoder's encoding half, and its form.

    It is the identity of a first stage in the cache of its latents and in runs of stage two: it stays the same when
    the decoder is trained further, and whatever the preprocessing. For other classes, whose encoding half isn't known,
    it is `model_hash`.
    """
    if type(first_stage) not in (AutoencoderKL, AutoencoderTiny, VQModel):
        return model_hash(first_stage)
    digest = hashlib.sha256(to_json(first_stage.encoding_form()))
    for name, tensor in sorted(first_stage.weights_of(first_stage.ENCODING).items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def to_json(data: Any) -> bytes:
    """Plain data as indented JSON in UTF-8; equal data give equal bytes."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return text.encode(
        "utf-8", "backslashreplace"
    )  # a lone surrogate, as in the name of a file, becomes its escape in JSON


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
