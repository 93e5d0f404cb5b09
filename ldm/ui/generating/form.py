"""From the page's fields to `Settings` and back."""

import functools
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.common import annotations
from ldm.common.errors import UserError
from ldm.images import ReadOptions, open_image
from ldm.ui.generating.models import Traits
from ldm.ui.generating.page_store import PageStore
from ldm.ui.generating.painting import canvas, joined_masks, painted_mask
from ldm.ui.generating.settings import (
    MAX_IMAGES,
    MAX_PIXELS,
    MAX_SEED,
    SLOTS,
    Settings,
    check_settings,
    from_dict,
    parse_interval,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Reader = Callable[[Any, str], Any]  # reads a field's file; takes the file, and what messages call it
MODES = {"text": "Text to image", "image": "Image to image", "inpaint": "Inpaint", "variations": "Variations"}
AS_TRAINED = "as trained"
FINISHED = "finished"  # in the list of checkpoints: the model of the finished run
PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA", "CMYK")
NEW_SEED = -1
MAX_LAYERS = 8  # of the image editor; the page itself sends one


def settings_of(form: Mapping[str, Any], store: PageStore, uploads: Path) -> Settings:
    """A request from the fields as they were sent, with images as files in the folder `uploads`.

    The images that the mode uses are stored, and the request names them. Raises UserError for invalid values.
    """
    mode = form["mode"]
    if not isinstance(mode, str) or mode not in MODES:
        raise UserError(f"there is no mode '{mode}': take one of {', '.join(MODES)}.")
    option = {key: None if form[key] == AS_TRAINED else form[key] for key in ("sampler", "spacing")}
    plain = {
        "run": form["run"] or "",
        "checkpoint": None if form["checkpoint"] == FINISHED else form["checkpoint"],
        "prompt": _text(form, "prompt"),
        "negative": _text(form, "negative"),
        "labels": [str(label) for label in form["labels"]] if isinstance(form["labels"], list) else form["labels"],
        "seed": _seed(form),
        "n": _integer(_required_number(form, "n"), "n"),
        **{key: _integer(form[key], key) for key in ("steps", "width", "height")},
        **{key: _number(form[key], key) for key in ("shift", "eta", "rescale", "guidance")},
        **{key: value or None for key, value in option.items()},
        "interval": parse_interval(_text(form, "interval")),
        "loras": [(form[f"lora_{i}"], _required_number(form, f"lora_{i}_scale")) for i in _slots(form, "lora")],
        "enlarge": form["enlarge"] or None,
        "control_ready": _is_on(form, "control_ready") and bool(_slots(form, "control")),
    }
    settings = check_settings(from_dict(plain))
    read = functools.partial(open_upload, uploads=uploads)
    image, mask, strength = _initial_image(form, mode, read)
    return replace(
        settings,
        image=None if image is None else store.keep_input(image),
        mask=None if mask is None else store.keep_input(mask),
        strength=strength,
        feather=_integer(form["feather"], "feather") or 0 if mask is not None else 0,
        map=None if form["map"] is None else store.keep_input(read(form["map"], "map")),
        controlnets=tuple(_controlnet(form, i, store, read) for i in _slots(form, "control")),
    )


def prompts_of(form: Mapping[str, Any], settings: Settings) -> list[Settings]:
    """A request for each line of the prompt if the form says so, else the request itself. Raises UserError for too many
    lines."""
    lines = [line.strip() for line in settings.prompt.splitlines() if line.strip()]
    if not _is_on(form, "per_line") or len(lines) < 2:
        return [settings]
    if (count := len(lines) * settings.n * max(1, len(settings.labels))) > MAX_IMAGES:
        raise UserError(f"{len(lines)} prompts are {count} images: a request generates up to {MAX_IMAGES} images.")
    return [replace(settings, prompt=line) for line in lines]


def upload_path(file: Any, what: str, uploads: Path) -> Path:
    """The file that was uploaded into a field. Raises UserError for any other file of this machine."""
    path = file.get("path") if isinstance(file, Mapping) else None
    if not isinstance(path, str) or "\0" in path or not Path(path).resolve().is_relative_to(uploads.resolve()):
        raise UserError(f"the {what} has to be an uploaded file: upload it again.")
    if not Path(path).is_file():
        raise UserError(f"the {what} isn't stored here any more: upload it again.")
    return Path(path)


def open_upload(file: Any, what: str, uploads: Path) -> "Image":
    """The image that was uploaded into a field. Raises UserError, which names the field but no folder."""
    from PIL import Image

    path = upload_path(file, what, uploads)
    try:
        image = open_image(path.read_bytes(), ReadOptions(max_pixels=MAX_PIXELS))
    except OSError:
        raise UserError(f"the {what} isn't stored here any more: upload it again.") from None
    except UserError as error:
        raise UserError(f"the {what} {error}: upload another file, as PNG or JPEG.") from None
    if not isinstance(image, Image.Image) or image.mode not in PNG_MODES:
        raise UserError(f"the {what} holds values that a PNG can't hold: upload it as PNG or JPEG.")
    return image.convert("RGB") if image.mode == "CMYK" else image


def form_of(settings: Settings, about: Traits, store: PageStore) -> dict[str, Any]:
    """The fields of a request; images are files, or None if they aren't stored any more."""
    own = about.sampling
    mode = "inpaint" if settings.mask else "image" if settings.image else "text"
    initial = _file(settings.image, store)
    form = {
        "run": settings.run,
        "checkpoint": settings.checkpoint or FINISHED,
        "mode": mode,
        "prompt": settings.prompt,
        "negative": settings.negative,
        "labels": list(settings.labels),
        "map": _file(settings.map, store),
        "image": initial if mode == "image" else None,
        "editor": canvas(initial, _file(settings.mask, store)) if mode == "inpaint" else None,
        "mask": None,
        "feather": settings.feather,
        "per_line": False,
        "enlarge": settings.enlarge or "",
        "seed": settings.seed,
        "n": settings.n,
        "sampler": settings.sampler or own["sampler"],
        "steps": settings.steps or own["steps"],
        "guidance": _first(settings.guidance, own["guidance"]),
        "width": settings.width,
        "height": settings.height,
        "spacing": settings.spacing or AS_TRAINED,
        "shift": settings.shift,
        "eta": settings.eta,
        "rescale": settings.rescale,
        "control_ready": settings.control_ready,
        "interval": "" if settings.interval is None else ", ".join(f"{v:g}" for v in settings.interval),
    }
    if settings.strength is not None:
        form["strength" if mode == "image" else "mask_strength"] = settings.strength
    for i in range(SLOTS):
        lora = settings.loras[i] if i < len(settings.loras) else (None, 1.0)
        control = settings.controlnets[i] if i < len(settings.controlnets) else (None, 1.0, 0.0, 1.0, None)
        form |= {f"lora_{i}": lora[0], f"lora_{i}_scale": lora[1]}
        keys = ("", "_weight", "_start", "_end")
        form |= {f"control_{i}{key}": value for key, value in zip(keys, control, strict=False)}
        form[f"control_{i}_image"] = _file(control[4], store)
    return form


def _initial_image(
    form: Mapping[str, Any], mode: str, read: Reader
) -> "tuple[Image | None, Image | None, float | None]":
    """Initial image, mask and strength of a mode. Raises UserError if one that the mode needs is missing."""
    if mode == "text":
        return None, None, None
    if mode == "inpaint":
        image, mask = _editor_images(form["editor"], read, form["mask"])
        return image, mask, _required_number(form, "mask_strength")
    file, strength = (form["image"], "strength") if mode == "image" else (form["vary"], "vary_strength")
    if file is None:
        raise UserError(f"{MODES[mode].lower()} needs an initial image: upload one.")
    return read(file, "initial image"), None, _required_number(form, strength)


def _editor_images(editor: Any, read: Reader, uploaded: Any = None) -> "tuple[Image, Image]":
    """Initial image and mask from the image editor; white areas of the uploaded mask are added to the mask."""
    editor = editor if isinstance(editor, Mapping) else {}
    ground = editor.get("background")
    if ground is None:
        raise UserError("inpainting needs an initial image: upload one into the editor.")
    layers = editor.get("layers") or ()
    if not isinstance(layers, (list, tuple)) or len(layers) > MAX_LAYERS:
        raise UserError(f"the mask has to be a list of up to {MAX_LAYERS} layers: paint it again.")
    mask = painted_mask(read(layer, "mask") for layer in layers if layer is not None)
    image = read(ground, "initial image").convert("RGB")
    if uploaded is not None:
        mask = joined_masks(mask, read(uploaded, "mask"), image.size)
    if mask is None or not mask.getbbox():
        raise UserError("inpainting needs a mask: paint the area to regenerate, or upload a mask that has white.")
    return image, mask


def _controlnet(
    form: Mapping[str, Any], i: int, store: PageStore, read: Reader
) -> tuple[str, float, float, float, str]:
    image, name = form[f"control_{i}_image"], form[f"control_{i}"]
    weight, start, end = (_required_number(form, f"control_{i}_{key}") for key in ("weight", "start", "end"))
    if image is None:
        raise UserError(f"the ControlNet {name} needs an image to follow: upload one.")
    if not 0 <= start < end <= 1:
        raise UserError(
            f"the ControlNet {name} works from {start:g} to {end:g}: give a start below the end, both between 0 and 1."
        )
    return str(name), weight, start, end, store.keep_input(read(image, f"control image {i + 1}"))


def _slots(form: Mapping[str, Any], kind: str) -> list[int]:
    return [i for i in range(SLOTS) if form.get(f"{kind}_{i}") not in (None, "")]


def _text(form: Mapping[str, Any], key: str) -> str:
    value = "" if form[key] is None else form[key]
    if not isinstance(value, str):
        raise UserError(f"{key}={value} has to be text.")
    return value.strip()


def _is_on(form: Mapping[str, Any], key: str) -> bool:
    if not isinstance(form[key], bool | None):
        raise UserError(f"{key}={annotations.as_typed(form[key])} has to be true or false.")
    return bool(form[key])


def _number(value: Any, what: str) -> float | None:
    """A finite number, or None for an empty field."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= annotations.MAX_FLOAT32:
        raise UserError(f"{what}={value} has to be a number.")
    return value


def _integer(value: Any, what: str) -> int | None:
    number = _number(value, what)
    if number is not None and number != int(number):
        raise UserError(f"{what}={value} has to be a whole number.")
    return None if number is None else int(number)


def _required_number(form: Mapping[str, Any], key: str) -> float:
    number = _number(form[key], _field_name(key))
    if number is None:
        raise UserError(f"{_field_name(key)} is empty: give a number.")
    return number


def _field_name(key: str) -> str:
    """A field's name in words: `scale of LoRA 1` for `lora_0_scale`."""
    match = re.fullmatch(r"(lora|control)_(\d)_(\w+)", key)
    kinds = {"lora": "LoRA", "control": "ControlNet"}
    return f"{match[3]} of {kinds[match[1]]} {int(match[2]) + 1}" if match else key.replace("_", " ")


def _seed(form: Mapping[str, Any]) -> int:
    seed = _integer(form["seed"], "seed")
    if seed is None:
        raise UserError("the seed is empty: give a whole number, or -1 for a new one.")
    if seed >= MAX_SEED:
        raise UserError(f"seed={seed} has to be below 2^53: browsers round larger numbers.")
    return secrets.randbelow(2**31) if seed == NEW_SEED else seed


def _file(name: str | None, store: PageStore) -> Path | None:
    try:
        return store.input_path(name) if name else None
    except UserError:
        return None


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
