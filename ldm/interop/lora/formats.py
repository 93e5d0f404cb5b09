"""LoRA files in the formats of diffusers/peft and of kohya's tools, as pure conversions of state dicts that keep alpha.

Here a LoRA's weights have the names `unet.<module>.lora_A.weight` (down, (rank, in)) and `.lora_B.weight` (up), or
those of another of `kinds`, and `alphas` maps `unet.<module>` to alpha. Modules of CLIP's text encoder keep
`text_model.` in their names, as in files, whatever version of transformers is installed.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.artifact import refuse_not_finite
from ldm.common.errors import UserError, did_you_mean
from ldm.conditioning.text.clip_names import canonical, spellings
from ldm.interop.files.name_tables import bijection, report
from ldm.interop.files.values import read_json
from ldm.interop.lora import kinds, kohya_xl, trainer_files, writing
from ldm.interop.lora import strength as lora_strength
from ldm.interop.lora.kinds import Lora
from ldm.interop.lora.tensor_names import ALPHA, DORA_SCALE, KOHYA, has_peft_names, split, unsupported

log = logging.getLogger("ldm")
FORMATS = ("diffusers", "kohya")
FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # peft's and diffusers', in their folders


def adaptable(model: nn.Module, component: str = "unet") -> list[str]:
    """The modules that a LoRA can change, as `component.module`."""
    found = (n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    return [f"{component}.{name}" for name in found]


def read(path: str | Path, modules: Iterable[str]) -> Lora:
    """The LoRA in a .safetensors file of either format; `modules` are the names that it may change (`adaptable`).

    An `adapter_config.json` beside it is read too. Raises UserError naming tensors that fit no module, incomplete pairs
    of matrices, and settings of the strength without a counterpart here.
    """
    state, metadata = contents(path)
    return from_contents(path, state, metadata, modules)


def from_contents(
    path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], modules: Iterable[str]
) -> Lora:
    """As `read`, for a file whose `contents` have already been read."""
    lora = from_state(state, metadata, modules, where=str(path), config=config_beside(path, state))
    ranks = {module: lora.rank(module) for module in lora.alphas}
    has_convolutions = any(max(tensor.shape[2:], default=1) > 1 for tensor in lora.weights.values())
    trainer_files.warn_of_differences(path, lora.alphas, ranks, has_convolutions)
    return lora


def file_at(path: Path) -> Path | None:
    """The file of another tool's LoRA at a path: the path itself, or the file in a folder of peft or diffusers.

    Raises UserError where a folder holds both.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".safetensors" else None
    found = [path / name for name in FILES if (path / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{path} holds two LoRAs, {' and '.join(FILES)}: give the path of one of the files.")
    return found[0] if found else None


def contents(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} can't be read as a .safetensors file ({type(error).__name__}).") from None


def metadata_of(path: str | Path) -> dict[str, str]:
    """A file's metadata alone."""
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        return opened.metadata() or {}


def config_beside(path: str | Path, names: Iterable[str]) -> tuple[str, dict[str, Any]] | None:
    """The peft config beside a file, with its path. If peft's own file is there too, the config belongs to that one."""
    path = Path(path)
    config = path.with_name("adapter_config.json")
    if not config.is_file():
        return None
    owner = path.with_name(FILES[0])
    if path.name != owner.name and not has_peft_names(names) and (owner.exists() or owner.with_suffix(".bin").exists()):
        log.warning("%s is assumed to belong to the adapter_model beside it, not to %s", config, path.name)
        return None
    return str(config), read_json(config)


def write(path: str | Path, lora: Lora, to: str = "diffusers", xl: Iterable[str] = ()) -> None:
    """Writes a LoRA as diffusers reads it (the file is usually called `pytorch_lora_weights.safetensors`) or as kohya's
    tools do.

    diffusers reads LoRA and DoRA; LyCORIS and ComfyUI all `kinds` under kohya's names; `writing.to_peft` is a folder.
    `xl` are all modules of a Stable Diffusion XL base (`adaptable`), for which kohya's tools use other names.
    """
    from safetensors.torch import save_file

    if to not in FORMATS:
        raise UserError(f"to={to} isn't a LoRA format.{did_you_mean(to, FORMATS)}")
    if to == "diffusers":
        state, metadata = writing.to_diffusers(lora, {module: _canonical(module) for module in lora.alphas})
    else:
        state, metadata = writing.to_kohya(lora, _kohya_names(lora, xl)), {}
    save_file({name: t.contiguous() for name, t in state.items()}, path, {"format": "pt", **metadata})


def kohya_table(modules: Iterable[str]) -> dict[str, str]:
    """{ours: kohya's} for modules. Dots become underscores, so the way back needs the list of modules."""
    return bijection((module, _kohya(_canonical(module))) for module in modules)


def from_state(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    modules: Iterable[str],
    where: str = "the LoRA",
    config: tuple[str, Mapping[str, Any]] | None = None,
) -> Lora:
    """A LoRA from a file's tensors and metadata, in whichever format; `config` is peft's, with its path."""
    known = _known(modules)
    weights: dict[str, Tensor] = {}
    alphas: dict[str, Tensor] = {}
    unexpected = []
    for name, tensor in state.items():
        given, leaf = split(name)
        module = known.get(given)
        if module is None or leaf is None:
            unexpected.append(name)
            continue
        if leaf == DORA_SCALE:
            leaf, tensor = kinds.MAGNITUDE, _magnitudes(tensor, f"{where}: {name}")
        kept, key = (alphas, module) if leaf == ALPHA else (weights, f"{module}.{leaf}")
        if key in kept:
            raise UserError(f"{where}: {name} occurs twice, in two spellings: keep the right one.")
        kept[key] = tensor
    empty: dict[str, dict[str, Tensor]] = {module: {} for module in alphas}
    layers = empty | kinds.by_module(weights)
    missing = [f"{module}.{leaf}" for module in sorted(layers) for leaf in kinds.missing(layers[module])]
    unexpected += [f"{module}.{leaf}" for module in sorted(layers) for leaf in kinds.surplus(layers[module])]
    if unexpected or missing or not weights:
        raise UserError(f"{where}: {_misfit(missing, unexpected)}")
    _check_matrices(weights, where)
    _check_products(layers, where)
    ordered = {module: layers[module] for module in sorted(layers)}
    lora = Lora(
        _with_natural_magnitudes(weights),
        lora_strength.alphas(ordered, alphas, metadata, config=config, where=where, pefts=has_peft_names(state)),
    )
    check_strength(lora, 1.0, where)
    return lora


def _kohya_names(lora: Lora, xl: Iterable[str]) -> dict[str, str]:
    """{ours: kohya's} for the modules of a LoRA; `xl` as for `write`."""
    table = kohya_table(lora.alphas)
    if named := kohya_xl.kohya_names(xl):
        table |= {ours: named[ours] for ours in table if ours in named}
        table = {ours: theirs.replace("lora_te_", "lora_te1_", 1) for ours, theirs in table.items()}
    return table


def _known(modules: Iterable[str]) -> dict[str, str]:
    """{name in a file: ours}, for either spelling of CLIP, kohya's underscores, and peft's names without a
    component."""
    ours = list(dict.fromkeys(map(_canonical, modules)))
    known = {module: module for module in ours} | {theirs: module for module, theirs in kohya_table(ours).items()}
    for module, theirs in kohya_xl.kohya_names(ours).items():
        known.setdefault(theirs, module)
    for module in ours:
        component, _, short = module.partition(".")
        for name in spellings(short):
            full = f"{component}.{name}"
            aliases = (full, _kohya(full), _kohya(full).replace("lora_te_", "lora_te1_", 1), name)
            for alias in aliases:
                known.setdefault(alias, module)
    return known


def _canonical(module: str) -> str:
    component, _, short = module.partition(".")
    return f"{component}.{canonical(short)}"


def _kohya(module: str) -> str:
    component, _, short = module.partition(".")
    return f"{KOHYA[component]}_{short.replace('.', '_')}"


def _check_matrices(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuses tensors that can't be matrices of a LoRA, or aren't finite in float32, in which they are used."""
    for name, tensor in weights.items():
        dimensions = (1, 2, 4) if name.endswith(kinds.MAGNITUDE) else (2, 4)
        if tensor.ndim not in dimensions or not tensor.numel() or not tensor.is_floating_point():
            kind = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
            raise UserError(f"{where}: {name} is {kind}, which a LoRA's matrix can't be: download the file again.")
    refuse_not_finite({name: tensor.float() for name, tensor in weights.items()}, where)


def _check_products(layers: Mapping[str, Mapping[str, Tensor]], where: str) -> None:
    for module, layer in layers.items():
        try:
            kinds.change_shape(layer)
        except ValueError as error:
            raise UserError(f"{where}: {module} {error}: download the file again.") from None


def _magnitudes(tensor: Tensor, what: str) -> Tensor:
    """LyCORIS's magnitudes (out, 1) or (out, 1, 1, 1) of a DoRA, flat."""
    if tensor.ndim > 1 and tensor.shape[0] == 1 < tensor.numel():
        raise UserError(
            f"{what} holds a DoRA's magnitudes by input, {tuple(tensor.shape)}, which isn't read here: train it with "
            "magnitudes by output (wd_on_output=True in LyCORIS), or merge it in the tool that made it."
        )
    return tensor.flatten()


def _with_natural_magnitudes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With a DoRA's magnitudes in peft's shapes: (out,) of a matrix, (1, out, 1, 1) of a convolution."""
    shaped = dict(weights)
    for name, tensor in weights.items():
        module, leaf = kinds.split_leaf(name)
        if leaf == kinds.MAGNITUDE:
            is_matrix = weights[f"{module}.{kinds.DOWN}"].ndim == 2
            shaped[name] = tensor.flatten() if is_matrix else tensor.reshape(1, -1, 1, 1)
    return shaped


def check_strength(lora: Lora, scale: float, where: str) -> None:
    """Refuses a LoRA that changes some weight by scale * alpha / rank * B A that is too large: its bound is above the
    square root of float32's largest number, so products with it may not be finite."""
    layers = kinds.by_module(lora.weights)
    for module, alpha in lora.alphas.items():
        if not abs(scale * alpha) * kinds.bound(layers[module]) < torch.finfo(torch.float32).max ** 0.5:
            raise UserError(
                f"{where}: with alpha {alpha:g} at scale {scale:g}, the changes to {module} are too large to "
                "compute: take a smaller scale, or download the file again."
            )


def _misfit(missing: list[str], unexpected: list[str]) -> str:
    if kinds := unsupported(unexpected):
        return f"the LoRA can't be represented here: {kinds}."
    return f"the LoRA doesn't fit the model: {report(missing, unexpected) or 'it is empty'}."
