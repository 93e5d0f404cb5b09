"""The words of a command line, prepared for Hydra: pure functions of strings.

Hydra's grammar refuses `a cat!`, `it's` and Chinese, and splits at commas. Prompts and paths are therefore read as raw
text, from the first `=` to the end, and quoted before Hydra sees them. Options are passed on as `++key=`, so that an
option in a constructor's signature needs no `+`, whether the YAML lists it or not.
"""

import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ldm.common.errors import UserError, did_you_mean
from ldm.config.options import BY_NAME, NULL_IS_TEXT, PATH_ENDINGS, PATHS, SECTIONS_WITH_TEXT, SWITCHES, TEXTS

_FLAGS_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i"}
_FLAGS = _FLAGS_WITH_VALUE | {"--multirun", "-m", "--run", "-r", "--resolve", "--version", "--hydra-help"}
_FLAGS |= {"--shell-completion", "-sc", "--help", "-h"}
_OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>\w[\w./@:-]*)=(?P<value>.*)", re.DOTALL)
_HYDRAS_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_SWEEP_FUNCTION = re.compile(r"(choice|glob|range|shuffle|sort|interval)\(.*\)", re.DOTALL)


def prepare(words: Sequence[str], groups: Collection[str]) -> tuple[list[str], list[str]]:
    """Flags and overrides as Hydra reads them: raw text quoted, options as `++key=`.

    In a sweep (-m) a prompt stays one text, while names and paths are split at commas (`first_stage=vae_a,vae_b`): a
    path that contains a comma then needs quotes of its own. Raises UserError for a word that is neither a flag nor
    KEY=VALUE.
    """
    flags, overrides = split(words)
    if {"--shell-completion", "-sc"} & set(flags):  # followed by words for Hydra, such as install=bash
        return flags, overrides
    prepared = [_override(word, groups, is_sweep(flags)) for word in overrides]
    return flags, prepared + _other_limit_lifted(prepared)


def _other_limit_lifted(overrides: Sequence[str]) -> list[str]:
    """If the words give only one limit, of steps or of time, an override that lifts the other one, which YAML sets."""
    given = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in overrides)}
    steps, seconds = (given.get(f"trainer.{key}") for key in ("max_steps", "max_time"))
    if seconds is None and steps not in (None, "null", "-1"):
        return ["++trainer.max_time=null"]
    if steps is None and seconds not in (None, "null"):
        return ["++trainer.max_steps=-1"]
    return []


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words into flags (with their values) and overrides.

    Raises UserError for an unknown flag, and for a word that is neither.
    """
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        if word.startswith("-") and word.partition("=")[0] not in _FLAGS:
            raise UserError(f"there is no flag {word}.{did_you_mean(word, _FLAGS)}")
        if word.startswith("-") or (takes_value and "=" not in word):
            flags.append(word)
        elif _OVERRIDE.fullmatch(word) or word.startswith("~"):
            overrides.append(word)
        else:
            raise UserError(
                f"'{word}' isn't an option: write KEY=VALUE, with quotes around text with spaces, as in "
                '"prompt=a cat".'
            )
        takes_value = word in _FLAGS_WITH_VALUE
    return flags, overrides


def is_sweep(flags: Collection[str]) -> bool:
    """Whether the flags ask for a sweep, by -m or --multirun."""
    return "-m" in flags or "--multirun" in flags


def quote(text: str) -> str:
    """`text` as a quoted string of Hydra's grammar: quotes escaped, backslashes before one doubled."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def job_name(swept: Iterable[tuple[str, Any]]) -> str | None:
    """The folder name of a sweep's job, from the swept values: `channels-64_diffusion-eps`; None without any.

    A dotted key is shortened to its last part, unless two keys would then be the same. A value that a file name can't
    hold gets a checksum, so that no two jobs share a folder.
    """
    pairs = [(key, value) for key, value in swept if key != "name"]  # a swept name is the folder's name already
    last = [key.rsplit(".", 1)[-1] for key, _ in pairs]
    labels = [part if last.count(part) == 1 else key for part, (key, _) in zip(last, pairs, strict=True)]
    parts = []
    for label, (_, value) in zip(labels, pairs, strict=True):
        parts.append(f"{label.replace('/', '-')}-{_for_file_name(value)}")
    name = "_".join(parts)
    if len(name.encode()) > 180:
        name = f"{name[:60]}-{zlib.crc32(name.encode()):08x}"
    return name or None


def _override(word: str, groups: Collection[str], sweeping: bool) -> str:
    match = _OVERRIDE.fullmatch(word)
    if match is not None and match["key"] in _HYDRAS_FOLDERS:
        raise UserError(
            f"{match['key']}: a run writes to its own folder, which name= and runs_dir= choose; leave it out."
        )
    if match is None or match["prefix"] == "~" or re.match(r"hydra[./]", match["key"]):
        return word
    prefix, key, value = match["prefix"] or "", match["key"], match["value"]
    if key in groups or "/" in key or "@" in key:
        return word
    return f"{prefix or '++'}{key}={_value(key, value, sweeping)}"


def _value(key: str, value: str, sweeping: bool) -> str:
    if _is(key, TEXTS) and not (value == "null" and key.rsplit(".", 1)[-1] not in NULL_IS_TEXT):
        return quote(
            re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", value)
        )  # `${` is text here, not an interpolation
    if not _is(key, PATHS) and not key.endswith(PATH_ENDINGS):
        return value
    if sweeping and (value[:1] in ("'", '"') or _SWEEP_FUNCTION.fullmatch(value)):
        return value
    literal = {"null", "true", "false"} if key in SWITCHES else {"null"}
    pieces = value.split(",") if sweeping else [value]
    return ",".join(piece if piece in literal else quote(piece) for piece in pieces)


def _is(key: str, names: Collection[str]) -> bool:
    """Whether `key` is an option of `names`: at the top level, in a section that has such options, or for a ControlNet.
    Elsewhere the same word has another meaning: `diffusion.weighting.features` is a number.
    """
    section, _, rest = key.partition(".")
    if not rest:
        return key in names
    return rest in names if section in SECTIONS_WITH_TEXT else section in BY_NAME and section in names


def _for_file_name(value: Any) -> str:
    """A value as part of a file name, without characters that mean something to Hydra's grammar or a shell."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "_".join(map(_for_file_name, value))
    text = str(value)
    safe = re.sub(r"[^\w.+-]+", "_", text)
    return safe if safe == text else f"{safe[:40]}-{zlib.crc32(text.encode()):08x}"
