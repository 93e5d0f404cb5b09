"""`ldm check`: what a data set holds and what may be wrong with it, as a page, JSON and a summary in the terminal.

Images are decoded as training does it, into the cache where training finds them.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.commands.check.page import write_page
from ldm.common.errors import printable
from ldm.data.checking.collection import Collection
from ldm.data.checking.findings import Report, examine, figures
from ldm.data.checking.prepare import Prepared, prepared
from ldm.training.auto.advice import Plan, plan, size_for
from ldm.training.trainer.fit import cache_of, check_environment, import_modules

MOST_LINES = 20
PAGE, NUMBERS = "check.html", "check.json"
SMALL_SET, FLIP_BELOW = 500, 20_000  # images up to which augmentation, and mirror images, are worth their time
_FACTS = 7  # lines about files, at most


def main(config: dict[str, Any], job: str | None = None) -> Path:
    """Checks the data set of `config`, and returns the folder with check.html and check.json."""
    import_modules(config)
    check_environment(config)
    with prepared(config["data"], cache_of(config) / "data", lambda sizes: size_for(sizes, config)) as found:
        report = examine(Collection(found.train, found.val))
        chosen = plan(config, found.source, found.train, found.facts.training)
        out = Path(config["out"] or Path(config["runs_dir"]) / "check" / found.source.name)
        advice = advice_lines(found, report, chosen, config)
        numbers = _numbers(found, report, chosen)
        write_page(out, found, report, advice, numbers=numbers, names=(PAGE, NUMBERS))
    for line in summary_lines(found, report, advice, out):
        print(printable(line).encode("utf-8", "backslashreplace").decode(), flush=True)
    return out


def _numbers(found: Prepared, report: Report, chosen: Plan) -> dict[str, Any]:
    """Everything that the check found, as plain data."""
    facts = vars(found.facts)
    return {"data": facts, "refusal": found.refusal, "needs": found.options, **figures(report), "plan": chosen.figures}


def advice_lines(found: Prepared, report: Report, chosen: Plan, config: Mapping[str, Any]) -> list[str]:
    """What to do next: what training would refuse, what it would choose and how long it takes, and its commands."""
    lines = []
    if found.refusal:
        total = found.facts.training + found.facts.validation + len(found.facts.bad)
        share = -(-1000 * len(found.facts.bad) // total) / 1000
        lines.append(
            f"training stops at these data: {len(found.facts.bad)} of {total} images can't be used; remove them, or "
            f"take data.max_bad_share={share:g}"
        )
    if "size" in found.options:
        lines.append(f"the images have several sizes: checked at data.size={_value(found.options['size'])}, give one")
    if chosen.refusal:
        return [*lines, f"training stops at these data: {chosen.refusal}"]
    lines += [*_cut_captions(report, chosen), *chosen.lines]
    lines += augmentation_lines(found.facts.training, report, config["data"])
    words = data_words({**config["data"], **found.options})
    if any("experiment=small_set" in line for line in lines):
        words = f"experiment=small_set {words}"
    return [*lines, f"ldm train-vae {words} && ldm train-ldm {words}"]


def augmentation_lines(images: int, report: Report, spec: Mapping[str, Any]) -> list[str]:
    """Which variants suit this number of images."""
    if any(spec.get(key) for key in ("variants", "augment")) or spec.get("flip", "none") != "none":
        return []
    if images <= SMALL_SET:
        return [f"a small set is soon memorised: experiment=small_set trains on variants of these {images}"]
    if images > FLIP_BELOW:
        return []
    if report.texts is not None and (sides := len(report.texts.sides)):
        return [f"{sides} captions say left or right, so images shouldn't be mirrored"]
    return ["if mirror images are as good (no writing): data.flip=horizontal doubles the images"]


def _cut_captions(report: Report, chosen: Plan) -> list[str]:
    """How many captions are longer than the text encoder reads."""
    texts = report.collection.column("text")
    if texts is None or chosen.conditioner is None:
        return []
    captions = {one for each in texts for one in ([each] if isinstance(each, str) else each)}
    lines = []
    for name, part in chosen.conditioner.parts.items():
        if cuts := part.cut(captions):
            longest = max(cuts, key=lambda cut: cut.tokens)
            lines.append(
                f"{len(cuts)} captions are longer than the {longest.limit} tokens that conditioner.{name} reads (up to "
                f"{longest.tokens}): the rest isn't read; a larger conditioner.{name}.length=, if it has that "
                "option, reads more"
            )
    return lines


def data_words(spec: Mapping[str, Any]) -> str:
    """The options of a source as words of a command line."""
    words = [f"data={spec['class'].lower()}"]
    words += [f"data.{key}={_value(value)}" for key, value in spec.items() if key != "class" and value is not None]
    return shlex.join(words)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {_value(one)}' for key, one in value.items())}}}"
    return str(value)


def summary_lines(found: Prepared, report: Report, advice: Sequence[str], out: Path) -> list[str]:
    """At most 20 lines for a terminal."""
    room = MOST_LINES - len(advice) - 1
    lines = _first(found.facts.lines(), min(_FACTS, room // 2), "more lines about files")
    findings = [finding.sentence for finding in report.findings]
    lines += _first(findings, room - len(lines), "more findings") if findings else ["nothing suspicious was found"]
    lines += advice
    return [lines[0], *(f"  {line}" for line in lines[1:]), f"page: {out / PAGE}"]


def _first(lines: Sequence[str], most: int, more: str) -> list[str]:
    if len(lines) <= most:
        return list(lines)
    return [*lines[: most - 1], f"{len(lines) - most + 1} {more}: see the page"]
