"""Settings in a PNG's text chunks: our own JSON under `ldm`, and `parameters` as AUTOMATIC1111's web UI writes it.

`parameters` is the prompt, a line `Negative prompt: ...` where there is one, and a last line of pairs, `Steps: 20,
Sampler: euler, CFG scale: 3, Seed: 1, Size: 32x32`; a value with a comma, colon or line break is quoted as in JSON.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ldm.common.annotations import MAX_GUIDANCE, replace_surrogates
from ldm.common.errors import UserError
from ldm.conditioning.text.truncation import bounded
from ldm.diffusion import SAMPLERS
from ldm.images import BadImage, check_metadata
from ldm.ui.generating.settings import MAX_PIXELS, MAX_SEED, MAX_STEPS, OPTIONS, SLOTS, Settings, from_dict

# Our samplers by their names in other tools.
SAMPLER_NAMES = {
    "euler a": "euler_ancestral",
    "dpm++ 2m": "dpmpp_2m",
    "dpm++ 2m karras": "dpmpp_2m",
    "dpm++ 2m sde": "dpmpp_2m_sde",
    "dpm++ 2m sde karras": "dpmpp_2m_sde",
}
KNOWN = {*(one.name for one in fields(Settings)), "prompts", "axes"}
TEXTS = ("Sampler", "Model", "Class")
NUMBERS: dict[str, tuple[str, type, float, float]] = {  # our name, its type, and the range that is taken
    "Steps": ("steps", int, 1, MAX_STEPS),
    "CFG scale": ("guidance", float, -MAX_GUIDANCE, MAX_GUIDANCE),
    "Seed": ("seed", int, 0, MAX_SEED - 1),
    "Denoising strength": ("strength", float, 0, 1),
}
LENGTHS = {"ldm": 2_000_000, "parameters": 1_000_000}  # characters of either chunk
# Bounded and possessive, so that matching takes time linear in the length of the text, not quadratic.
_PAIR = re.compile(r'(\w[\w \-/]{0,63}):\s*("(?:\\.|[^\\"])++"|[^,]*)(?:,|$)')


def text_chunks(
    settings: Settings, size: tuple[int, int], defaults: Mapping[str, Any], axes: Mapping[str, list[Any]] | None = None
) -> dict[str, str]:
    """The text chunks of an image of `size` (width, height), or of a grid with the values of its `axes`; `defaults` are
    the model's own sampling options."""
    about = settings.as_dict() | ({"axes": dict(axes)} if axes else {})
    own = json.dumps(about, ensure_ascii=False, allow_nan=False)
    return {"ldm": own, "parameters": to_parameters(settings, size, defaults)}


def read_settings(
    path: str | Path, sampling: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Settings, list[str]]:
    """The settings in a PNG of the page, of sample.py, or of a tool that writes `parameters`; and remarks for the user,
    such as an initial image that has to be uploaded again.

    `sampling` has the model's own sampling options by run. Options of sample.py that equal them are left unset, since
    they belong to one sampler. Raises UserError for a file without settings, or with damaged ones.
    """
    text = _text_of(path)
    if long := [key for key, most in LENGTHS.items() if len(text.get(key, "")) > most]:
        raise UserError(f"the image's settings are too long: '{long[0]}' may have up to {LENGTHS[long[0]]} characters.")
    if "ldm" in text:
        try:
            plain = json.dumps(json.loads(text["ldm"]), ensure_ascii=False, allow_nan=False)
            given = json.loads(replace_surrogates(plain))
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise UserError("the image's settings are damaged: its text chunk 'ldm' isn't JSON of finite numbers.")
        try:
            return _ours(given, sampling or {})
        except UserError as error:
            raise UserError(f"the image's settings are damaged: {error}") from None
    if "parameters" in text:
        return from_parameters(text["parameters"]), _ignored(text["parameters"])
    raise UserError("this image holds no settings: take a PNG as the page or sample.py wrote it, unchanged.")


@functools.lru_cache(maxsize=20_000)
def searchable(path: Path) -> str:
    """The prompts and settings of a generated image in small letters, to search in; empty for one that has none."""
    try:
        return _text_of(path).get("parameters", "").lower()
    except UserError:
        return ""


def to_parameters(settings: Settings, size: tuple[int, int], defaults: Mapping[str, Any]) -> str:
    """The `parameters` chunk of an image of `size` (width, height); `defaults` are the model's sampling options."""
    options = {**defaults, **settings.options()}
    pairs = {
        "Steps": options.get("steps"),
        "Sampler": options.get("sampler"),
        "CFG scale": options.get("guidance"),
        "Seed": settings.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": settings.run,
        "Denoising strength": settings.strength,
        "Class": "|".join(settings.labels) or None,
    }
    lines = [settings.prompt] if settings.prompt else []
    lines += [f"Negative prompt: {settings.negative}"] if settings.negative else []
    return "\n".join([*lines, ", ".join(f"{k}: {_quoted(v)}" for k, v in pairs.items() if v is not None)])


def from_parameters(text: str) -> Settings:
    """The settings of a `parameters` chunk that the page has, without the size, which suits the other tool's model."""
    lines, pairs = _parts(text)
    texts: dict[str, list[str]] = {"prompt": [], "negative": []}
    target = "prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            target, line = "negative", line.removeprefix("Negative prompt:").strip()
        texts[target].append(line)
    given = {
        **{key: "\n".join(found).strip() for key, found in texts.items()},
        "sampler": _sampler(pairs),
        **{ours: _number(pairs, theirs) for theirs, (ours, *_) in NUMBERS.items()},
        "run": pairs.get("Model"),
        "labels": pairs["Class"].split("|") if pairs.get("Class") else None,
        "n": 1,
    }
    return from_dict(given)


def _parts(text: str) -> tuple[list[str], dict[str, str]]:
    """The lines of the prompts in a `parameters` chunk, and its pairs."""
    *lines, last = text.strip().split("\n")
    found: dict[str, list[str]] = {}
    key, end = "", 0
    for match in [*_PAIR.finditer(last), None]:
        if (
            between := last[end : match and match.start()].strip().rstrip(",")
        ):  # the rest of a value with a comma, as in 7,5
            found.setdefault(key, []).append(between)
        if match:
            key, end = match[1].strip(), match.end()
            found[key] = [_unquoted(match[2].strip())]
    pairs = {key: ",".join(filter(None, values)) for key, values in found.items()}
    return ([*lines, last], {}) if len(pairs.keys() - {""}) < 3 else (lines, pairs)


def _sampler(pairs: Mapping[str, str]) -> str | None:
    name = pairs.get("Sampler", "").lower()
    name = SAMPLER_NAMES.get(name, name)
    return name if name in SAMPLERS else None


def _ignored(text: str) -> list[str]:
    """A remark on the pairs of a `parameters` chunk that the page ignores, if there are any."""
    pairs = _parts(text)[1]
    unsupported = [f"{key}: {value}" if key else value for key, value in pairs.items() if not _is_taken(pairs, key)]
    return [f"The page ignores these settings: {bounded(', '.join(unsupported))}."] if unsupported else []


def _is_taken(pairs: Mapping[str, str], key: str) -> bool:
    if key in NUMBERS:
        return _number(pairs, key) is not None
    return key in TEXTS and (key != "Sampler" or _sampler(pairs) is not None)


def _ours(given: dict[str, Any], sampling: Mapping[str, Mapping[str, Any]]) -> tuple[Settings, list[str]]:
    """Settings and remarks from the JSON that sample.py or the page wrote."""
    remarks = []
    if "prompts" in given:  # a grid of sample.py
        given = given | {"prompt": str(given["prompts"][0]) if given["prompts"] else ""}
        if len(given["prompts"]) > 1:
            remarks.append(f"The grid has {len(given['prompts'])} prompts: this is the first.")
    if "axes" in given:
        remarks.append("It is an X/Y grid: these are the settings that its axes vary.")
    if "n" not in given and "prompts" not in given:
        given = given | {"n": 1}
    if isinstance(given.get("guidance"), dict):
        remarks.append("It has a guidance scale for each condition, for which the page has no fields.")
        given = {k: v for k, v in given.items() if k != "guidance"}
    for key in ("image", "mask", "map"):
        if given.get(key) and not re.fullmatch(r"[0-9a-f]{16}", str(given[key])):
            remarks.append(f"It was generated with {key}={bounded(str(given[key]))}: upload that file again.")
            given = {k: v for k, v in given.items() if k != key}
    own = sampling.get(str(given.get("run")), {})
    unsupported = [f"{k}={v}" for k, v in given.items() if k not in KNOWN and v is not None and v != own.get(k)]
    unsupported += [
        f"{k} beyond the first {SLOTS}" for k in ("loras", "controlnets") if len(given.get(k) or ()) > SLOTS
    ]
    if unsupported:
        remarks.append(f"It was generated with {bounded(', '.join(unsupported))}, for which the page has no fields.")
    defaults_given = {key for key in OPTIONS[3:] if key in given and given[key] == own.get(key)}
    return from_dict({k: v for k, v in given.items() if k not in defaults_given}), remarks


def _text_of(path: str | Path) -> dict[str, str]:
    from PIL import Image

    try:
        with open(path, "rb") as file:
            check_metadata(file)
            with Image.open(file) as image:
                return {key: str(value) for key, value in _text_in(image).items()}
    except BadImage as error:
        raise UserError(f"the image {error}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the file can't be read as an image ({type(error).__name__}): give a PNG.") from None


def _text_in(image: Any) -> dict[str, Any]:
    """A PNG's text: that before its pixels if it holds settings, else all of it, for which Pillow decodes them."""
    if image.format != "PNG":
        return {}
    first = {key: value for key, value in image.info.items() if isinstance(value, str)}
    if LENGTHS.keys() & first.keys() or image.width * image.height > MAX_PIXELS:
        return first
    return image.text


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _unquoted(text: str) -> str:
    try:
        return replace_surrogates(str(json.loads(text))) if text[:1] == '"' else text
    except ValueError:
        return text


def _number(pairs: Mapping[str, str], key: str) -> Any:
    """The number of a pair; None if it isn't one, or is out of range."""
    _, kind, least, most = NUMBERS[key]
    try:
        number = kind(pairs.get(key, ""))
    except ValueError:
        return None
    return number if least <= number <= most else None
