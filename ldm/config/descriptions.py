"""The comments in conf/, which --help, docs/make_reference.py and messages show."""

import re
from pathlib import Path


def about(file: Path) -> str:
    """The sentence in the first line of a script's config."""
    match = re.match(r"# (.*)", file.read_text("utf-8"))
    return match[1] if match else ""


def options(file: Path) -> str:
    """A script's own options with their comments: its config without the first line and the list of groups."""
    text = file.read_text("utf-8")
    return re.sub(r"^(# .*\n)?(defaults:\n(?:  .*\n)*)?", "", text).strip()


def groups(file: Path) -> list[tuple[str, str]]:
    """The groups that a script's config chooses from, each with its default choice."""
    match = re.search(r"^defaults:\n((?:  .*\n)*)", file.read_text("utf-8"), re.MULTILINE)
    return re.findall(r"^  - (\w+): (\w+)", match[1], re.MULTILINE) if match else []


def choices(conf: Path, group: str) -> list[str]:
    """The files of a group, by name."""
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def about_choice(file: Path) -> str:
    """The comment lines at the head of a group's file, or, without any, the classes that it names."""
    lines = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    return " ".join(lines) or ", ".join(f"`{name}`" for name in classes_in(file))


def classes_in(file: Path) -> list[str]:
    """The classes that a config names, each on a line of its own."""
    return re.findall(r"^ *class: (\w+)", file.read_text("utf-8"), re.MULTILINE)


def comment_beside_open_value(file: Path, key: str) -> str | None:
    """The comment beside `key: ???`, a value that the user has to give."""
    found = re.search(rf"^ *{re.escape(key)}: \?\?\? *# *(.+)$", file.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else None
