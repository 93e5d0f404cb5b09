"""What was read, in at most a dozen lines at every start; skipped.json holds the same facts, and every name."""

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
from ldm.data.reading.beside import ending
from ldm.data.reading.sample import Seen, plural, some

MOST_LINES = 12
FILE = "skipped.json"
_MOST_CLASSES = 20
_REASONS = 4
_FEW = 10  # of so many images at least one should have a caption
_MOST_NAMES = 5000  # of files that aren't read, for one reason
_log = logging.getLogger("ldm")


@dataclass
class Facts:
    """What a source took and what it didn't.

    `split` says how validation was chosen. `bad` are images that can't be used and `left_out` those that aren't meant,
    each by path with the reason; `unread` are files beside them that aren't read, by the reason, and of very many that
    share one a pattern instead, with their number. `no_caption` are images that have none, `several_lines` files of
    captions; `counts` says of how many images what was done, and `doubts` what pixels may be meant for, None where an
    older version hasn't looked. `notes` and `asides`: see `Seen`.
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

    @property
    def lost(self) -> bool:
        """Whether there is something that the user may not have meant."""
        return self.names or bool(self.notes or self.doubts)

    @property
    def names(self) -> bool:
        """Whether there are files to look up by name."""
        return bool(self.bad or self.left_out or self.no_caption or self.several_lines or self.notes and self.unread)

    def save(self, folder: Path) -> None:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        atomic_write(folder / FILE, text.encode("utf-8", "surrogatepass"))  # a file's name may be no UTF-8

    @classmethod
    def load(cls, folder: Path) -> "Facts":
        return cls(**json.loads((folder / FILE).read_bytes().decode("utf-8", "surrogatepass")))

    def lines(self) -> list[str]:
        """In the order of what matters, without a limit."""
        images = plural(self.training, "image")
        found = [f"data {self.source}: {images} for training, {self.validation} for validation ({self.split})"]
        if self.bad:
            reasons = _by_reason(self.bad)
            each = "; ".join(f"{reason} ({some(of)})" for reason, of in reasons[:_REASONS])
            rest = sum(len(of) for _, of in reasons[_REASONS:])
            each += f"; and {rest} more for other reasons" if rest else ""
            found.append(f"{plural(len(self.bad), 'image')} couldn't be used: {each}")
        found += self._left_out()
        found += self._captions()
        if self.classes:
            more = ", ..." if len(self.classes) > _MOST_CLASSES else ""
            count = "1 class" if len(self.classes) == 1 else f"{len(self.classes)} classes"
            found.append(f"{count}: {', '.join(self.classes[:_MOST_CLASSES])}{more}")
        found += [f"{plural(count, 'image')}: {what}" for what, count in self.counts.items()]
        return found + (self.doubts or []) + self.notes + self.asides

    def _left_out(self) -> list[str]:
        """A line for each of the most frequent reasons, and one for the others."""
        reasons = _by_reason(self.left_out)
        most = len(reasons) if len(reasons) <= _REASONS + 1 else _REASONS
        found = [f"left out: {reason} ({plural(len(of), 'file')}: {some(of)})" for reason, of in reasons[:most]]
        if rest := [path for _, of in reasons[most:] for path in of]:
            why = plural(len(reasons) - most, "more reason")
            found.append(f"left out for {why}: {plural(len(rest), 'file')} ({some(rest)})")
        return found

    def _captions(self) -> list[str]:
        found = []
        if self.no_caption:
            total = self.captions + len(self.no_caption)
            said = f"{len(self.no_caption)} of {total} images have no caption and get an empty one"
            few = "; data.columns='[label]' trains without captions" if _FEW * self.captions < total else ""
            found.append(f"{said}: {some(self.no_caption)}{few}")
        elif self.captions:
            found.append(f"{plural(self.captions, 'image')} with captions")
        if n := len(self.several_lines):
            said = f"{plural(n, 'caption file')} of several lines, each one caption: {some(self.several_lines)}"
            found.append(f"{said}; if each line is a caption of its own: data.captions=lines")
        return found


def facts_of(
    seen: Seen,
    source: str,
    training: int,
    validation: int,
    split: str,
    tally: Tally,
    captions: int,
    classes: Iterable[str],
) -> Facts:
    return Facts(
        source,
        training,
        validation,
        split,
        bad={path: _plain(reason) for path, reason in tally.bad.items()},
        left_out=seen.left_out,
        unread=by_name(seen.unread),
        captions=captions,
        no_caption=tally.no_caption,
        several_lines=tally.several_lines,
        classes=list(classes),
        counts=dict(tally.notes),
        notes=seen.notes,
        asides=seen.asides,
    )


def by_name(unread: Mapping[str, str]) -> dict[str, list[str]]:
    """The files by the reason why they aren't read; of very many the patterns of their names, and how many they are."""
    return {reason: _names(paths) for reason, paths in _by_reason(unread)}


def _names(paths: Sequence[str]) -> list[str]:
    if len(paths) <= _MOST_NAMES:
        return sorted(paths)
    counts, first = Counter(map(ending, paths)), {ending(path): path for path in reversed(paths)}
    return [f"*{kind} ({plural(count, 'file')}, such as {first[kind]})" for kind, count in counts.items()]


def tell(facts: Facts, file: Path) -> None:
    """Says the facts once: as a warning, if something may be lost."""
    if rank() > 0:
        return
    lines = facts.lines()
    if len(lines) >= MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{len(lines) - MOST_LINES + 1} more, and every name: {file}"]
    elif facts.names:
        lines.append(f"every name: {file}")
    text = "\n  ".join(map(printable, lines)).encode("utf-8", "backslashreplace").decode()
    if facts.lost:
        _log.warning("%s", text)
    else:
        print(text, flush=True)


def _by_reason(paths: Mapping[str, str]) -> list[tuple[str, Sequence[str]]]:
    """The most frequent reason first."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, reason in paths.items():
        found[reason].append(path)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _plain(reason: str) -> str:
    """Without the object's address, which Pillow's messages hold."""
    return re.sub(r" <_io\.BytesIO object at 0x\w+>", "", reason)
