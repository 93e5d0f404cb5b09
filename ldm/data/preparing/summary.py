"""The summary of a data set, at most a dozen lines at every start; skipped.json holds the same facts with all names."""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ldm.common.errors import printable
from ldm.common.files import atomic_write
from ldm.common.ranks import rank
from ldm.data.preparing.decode import Tally
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import ending

MOST_LINES = 12
FILE = "skipped.json"
_MOST_CLASSES = 20
_REASONS = 4  # that a line names
_FEW = 10  # with captions for fewer than one in so many images, training without them is suggested
_MOST_NAMES = 5000  # of unread files with one reason; beyond it patterns stand for the names
_log = logging.getLogger("ldm")


@dataclass
class Facts:
    """What a source used and what it didn't; the fields are the keys of skipped.json.

    - `split`: how validation images were chosen;
    - `bad`: images that can't be used, `left_out`: images that aren't wanted, both by path with the reason;
    - `unread`: files beside the images that aren't read, by reason; where very many share a reason, patterns of their
      names with their number;
    - `captions`: the number of images with a caption, `no_caption`: the images without one;
    - `several_lines`: caption files of several lines;
    - `counts`: what was done to images, in words, with the number of images;
    - `doubts`: warnings about pixels, None where an older version hasn't looked at them;
    - `notes`, `asides`: the warnings and the remarks of `Findings`;
    - `class_note`: what the line that lists the classes adds.
    """

    source: str
    training: int
    validation: int
    split: str
    bad: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unread: dict[str, list[str]] = field(default_factory=dict)
    captions: int = 0
    no_caption: list[str] = field(default_factory=list)
    several_lines: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    doubts: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    asides: list[str] = field(default_factory=list)
    class_note: str = ""

    @property
    def is_warning(self) -> bool:
        """Whether something may not be as the user intended."""
        return self.has_names or bool(self.notes or self.doubts)

    @property
    def has_names(self) -> bool:
        """Whether there are files to look up by name."""
        return bool(self.bad or self.left_out or self.no_caption or self.several_lines or self.notes and self.unread)

    def save(self, folder: Path) -> None:
        """Writes skipped.json into `folder`."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        # parts of names that are not UTF-8 become \udcff, as JSON has them, so that other programs can read the file
        atomic_write(folder / FILE, text.encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, folder: Path) -> "Facts":
        """The facts in the skipped.json of `folder`."""
        return cls(**json.loads((folder / FILE).read_bytes().decode("utf-8", "surrogatepass")))

    def lines(self) -> list[str]:
        """All lines of the summary, the most important first."""
        images = plural(self.training, "image")
        found = [f"data {self.source}: {images} for training, {self.validation} for validation ({self.split})"]
        found += self._bad_lines() + self._left_out_lines() + self._caption_lines() + self._class_lines()
        found += [f"{plural(count, 'image')}: {what}" for what, count in self.counts.items()]
        return found + (self.doubts or []) + self.notes + self.asides

    def _bad_lines(self) -> list[str]:
        if not self.bad:
            return []
        reasons = _grouped(self.bad)
        each = "; ".join(f"{reason} ({examples(paths)})" for reason, paths in reasons[:_REASONS])
        if rest := sum(len(paths) for _, paths in reasons[_REASONS:]):
            each += f"; and {rest} more for other reasons"
        return [f"{plural(len(self.bad), 'image')} couldn't be used: {each}"]

    def _left_out_lines(self) -> list[str]:
        """A line for each of the most frequent reasons, and one for the others."""
        reasons = _grouped(self.left_out)
        most = len(reasons) if len(reasons) <= _REASONS + 1 else _REASONS
        found = [
            f"left out: {reason} ({plural(len(paths), 'file')}: {examples(paths)})" for reason, paths in reasons[:most]
        ]
        if rest := [path for _, paths in reasons[most:] for path in paths]:
            why = plural(len(reasons) - most, "more reason")
            found.append(f"left out for {why}: {plural(len(rest), 'file')} ({examples(rest)})")
        return found

    def _caption_lines(self) -> list[str]:
        found = []
        if self.no_caption:
            total = self.captions + len(self.no_caption)
            message = f"{len(self.no_caption)} of {total} images have no caption and get an empty one"
            message += f": {examples(self.no_caption)}"
            if _FEW * self.captions < total:
                message += "; data.columns='[label]' trains without captions"
            found.append(message)
        elif self.captions:
            found.append(f"{plural(self.captions, 'image')} with captions")
        if n := len(self.several_lines):
            message = (
                f"{plural(n, 'caption file')} with several lines, each file read as one caption: "
                f"{examples(self.several_lines)}"
            )
            found.append(f"{message}; if each line is a separate caption, use data.captions=lines")
        return found

    def _class_lines(self) -> list[str]:
        if not self.classes:
            return []
        count = "1 class" if len(self.classes) == 1 else f"{len(self.classes)} classes"
        more = ", ..." if len(self.classes) > _MOST_CLASSES else ""
        note = f" ({self.class_note})" if self.class_note else ""
        return [f"{count}: {', '.join(self.classes[:_MOST_CLASSES])}{more}{note}"]


def facts_of(
    findings: Findings,
    tally: Tally,
    *,
    source: str,
    training: int,
    validation: int,
    split: str,
    captions: int,
    classes: Iterable[str],
) -> Facts:
    """The facts of a listing and of decoding; the keywords are fields of `Facts`."""
    return Facts(
        source=source,
        training=training,
        validation=validation,
        split=split,
        bad={path: _without_address(reason) for path, reason in tally.bad.items()},
        left_out=findings.left_out,
        unread=by_reason(findings.unread),
        captions=captions,
        no_caption=tally.no_caption,
        several_lines=tally.several_lines,
        classes=list(classes),
        counts=dict(tally.notes),
        notes=findings.warnings,
        asides=findings.remarks,
        class_note=findings.class_note,
    )


def by_reason(unread: Mapping[str, str]) -> dict[str, list[str]]:
    """The unread files by reason; for very many, patterns of their names with their number."""
    return {reason: _names(paths) for reason, paths in _grouped(unread)}


def _names(paths: Sequence[str]) -> list[str]:
    if len(paths) <= _MOST_NAMES:
        return sorted(paths)
    counts, first = Counter(map(ending, paths)), {ending(path): path for path in reversed(paths)}
    return [f"*{kind} ({plural(count, 'file')}, such as {first[kind]})" for kind, count in counts.items()]


def report(facts: Facts, file: Path) -> None:
    """Prints the summary, as a warning if something may not be as the user intended."""
    if rank() > 0:
        return
    lines = facts.lines()
    if len(lines) >= MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{len(lines) - MOST_LINES + 1} more, and every name: {file}"]
    elif facts.has_names:
        lines.append(f"every name: {file}")
    text = "\n  ".join(map(printable, lines)).encode("utf-8", "backslashreplace").decode()
    if facts.is_warning:
        _log.warning("%s", text)
    else:
        print(text, flush=True)


def _grouped(paths: Mapping[str, str]) -> list[tuple[str, Sequence[str]]]:
    """The paths by reason, the most frequent reason first."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, reason in paths.items():
        found[reason].append(path)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _without_address(reason: str) -> str:
    """The reason without the object's address in Pillow's messages."""
    return re.sub(r" <_io\.BytesIO object at 0x\w+>", "", reason)
