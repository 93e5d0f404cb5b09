"""Between the page's fields and `Settings`: what a field means, and what a request looks like in the fields."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.ui.generate import enlarged
from ldm.ui.models import Traits
from ldm.ui.settings import Settings, parse_interval
from ldm.ui.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {"text": "From nothing", "image": "Image to image", "inpaint": "Inpaint", "variations": "Variations"}
AS_TRAINED = "as trained"
FINISHED = "finished"  # among checkpoints: the finished model
SLOTS = 2  # of LoRAs, and of ControlNets
CANVAS = 384  # pixels that a picture is enlarged to, at least, to be drawn on


def settings_of(form: Mapping[str, Any], store: Store) -> Settings:
    """A request from the fields. Pictures in them are kept, under the names that the request has for them."""
    mode = form["mode"]
    if mode not in MODES:
        raise UserError(f"there is no mode '{mode}': take one of {', '.join(MODES)}.")
    image, mask, strength = _begin(form, mode)
    option = {
        key: None if form[key] in (None, "", AS_TRAINED) else form[key]
        for key in ("sampler", "spacing", "shift", "eta", "rescale", "guidance")
    }
    return Settings(
        run=form["run"] or "",
        checkpoint=None if form["checkpoint"] in (None, "", FINISHED) else form["checkpoint"],
        prompt=(form["prompt"] or "").strip(),
        negative=(form["negative"] or "").strip(),
        labels=tuple(str(label) for label in form["labels"] or ()),
        map=None if form["map"] is None else store.keep_input(form["map"]),
        image=None if image is None else store.keep_input(image),
        mask=None if mask is None else store.keep_input(mask),
        strength=strength,
        feather=_whole(form["feather"], "feather") or 0 if mask is not None else 0,
        seed=secrets.randbelow(2**31) if form["new_seed"] else _whole(form["seed"], "seed") or 0,
        n=_whole(form["n"], "pictures") or 1,
        steps=_whole(form["steps"], "steps"),
        width=_whole(form["width"], "width") or None,
        height=_whole(form["height"], "height") or None,
        interval=parse_interval(form["interval"] or ""),
        loras=tuple((form[f"lora_{i}"], float(form[f"lora_{i}_scale"])) for i in _slots(form, "lora")),
        controlnets=tuple(_controlnet(form, i, store) for i in _slots(form, "control")),
        control_ready=bool(form["control_ready"]) and bool(_slots(form, "control")),
        **option,
    )


def form_of(settings: Settings, about: Traits, store: Store) -> dict[str, Any]:
    """The fields of a request; pictures are files, or None where they aren't kept any more."""
    own = about.sampling
    mode = "inpaint" if settings.mask else "image" if settings.image else "text"
    begin = _file(settings.image, store)
    form = {
        "run": settings.run,
        "checkpoint": settings.checkpoint or FINISHED,
        "mode": mode,
        "prompt": settings.prompt,
        "negative": settings.negative,
        "labels": list(settings.labels),
        "map": _file(settings.map, store),
        "image": begin if mode == "image" else None,
        "editor": canvas(begin, _file(settings.mask, store)) if mode == "inpaint" else None,
        "feather": settings.feather,
        "seed": settings.seed,
        "new_seed": False,
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


def canvas(picture: "Path | Image | None", mask: Path | None = None) -> dict[str, Any] | None:
    """What the drawing field shows: a picture, enlarged if it is small, with the mask drawn on it."""
    from PIL import Image

    if picture is None:
        return None
    ground = Image.open(picture).convert("RGBA") if isinstance(picture, Path) else picture.convert("RGBA")
    times = max(1, CANVAS // max(ground.size))
    layers = []
    if mask is not None:
        white = (
            Image.open(mask)
            .convert("L")
            .resize((ground.width * times, ground.height * times), Image.Resampling.NEAREST)
        )
        layer = Image.new("RGBA", white.size, (0, 0, 0, 0))
        layer.paste(Image.new("RGBA", white.size, (255, 255, 255, 255)), mask=white)
        layers = [layer]
    return {"background": enlarged(ground, times), "layers": layers, "composite": None}


def drawn_mask(editor: Mapping[str, Any]) -> "Image | None":
    """White where anything was drawn in the drawing field; None where nothing was."""
    from PIL import Image, ImageChops

    mask = None
    for layer in editor.get("layers") or ():
        if layer is not None:
            alpha = layer.convert("RGBA").getchannel("A").point(lambda value: 255 if value > 127 else 0)
            mask = (
                alpha if mask is None else ImageChops.lighter(mask, alpha.resize(mask.size, Image.Resampling.NEAREST))
            )
    return mask if mask is not None and mask.getbbox() else None


def _begin(form: Mapping[str, Any], mode: str) -> "tuple[Image | None, Image | None, float | None]":
    """Picture, mask and strength of a mode. Raises UserError for what the mode needs and hasn't got."""
    if mode == "text":
        return None, None, None
    if mode == "inpaint":
        editor = form["editor"] or {}
        if editor.get("background") is None:
            raise UserError("inpainting needs a picture: put one into the drawing field.")
        mask = drawn_mask(editor)
        if mask is None:
            raise UserError("inpainting needs a mask: draw with the brush over what shall be made anew.")
        return editor["background"].convert("RGB"), mask, float(form["mask_strength"])
    image, strength = (form["image"], form["strength"]) if mode == "image" else (form["vary"], form["vary_strength"])
    if image is None:
        raise UserError(f"{MODES[mode].lower()} needs a picture to begin from: put one in.")
    return image, None, float(strength)


def _controlnet(form: Mapping[str, Any], i: int, store: Store) -> tuple[str, float, float, float, str]:
    image = form[f"control_{i}_image"]
    name, start, end = form[f"control_{i}"], float(form[f"control_{i}_start"]), float(form[f"control_{i}_end"])
    if image is None:
        raise UserError(f"the ControlNet {name} needs a picture to follow: put one in.")
    if not 0 <= start < end <= 1:
        raise UserError(
            f"the ControlNet {name} works from {start:g} to {end:g}: give a start below the end, of 0 to 1."
        )
    return name, float(form[f"control_{i}_weight"]), start, end, store.keep_input(image)


def _slots(form: Mapping[str, Any], kind: str) -> list[int]:
    return [i for i in range(SLOTS) if form.get(f"{kind}_{i}") not in (None, "")]


def _whole(value: Any, what: str) -> int | None:
    if value is None or value == "":
        return None
    if float(value) != int(value):
        raise UserError(f"{what}: {value} has to be a whole number.")
    return int(value)


def _file(name: str | None, store: Store) -> Path | None:
    try:
        return store.input(name) if name else None
    except UserError:
        return None


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
