"""Writes docs/reference.md from conf/ and the docstrings: `python docs/make_reference.py`; `--check` only compares."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import ldm
from ldm.common import registry
from ldm.config import descriptions

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "reference.md"
PACKAGES = (
    "ldm.data",
    "ldm.networks",
    "ldm.conditioning",
    "ldm.diffusion",
    "ldm.model.latent_diffusion",
    "ldm.training.finetune.kinds",
)
INTRO = """# Reference

Made by `python docs/make_reference.py` from the configs and docstrings; edit those. It lists the options of each
command, the choices of its groups, and the classes that they name: every argument of a class's constructor is an
option, `GROUP.ARGUMENT=VALUE`, whether the YAML lists it or not. `python train_ldm.py --help` is a short version.

Completion of options and choices in bash (for zsh and fish, put their name in its place):

```bash
eval "$(python train_ldm.py --shell-completion install=bash)"
```
"""


def main() -> None:
    """Writes the page, or with --check exits with an error where it isn't current."""
    text = reference()
    if "--check" in sys.argv:
        sys.exit(0 if OUT.read_text("utf-8") == text else f"{OUT} isn't current: run python docs/make_reference.py")
    OUT.write_text(text, "utf-8")


def reference() -> str:
    """The whole page."""
    for package in PACKAGES:
        importlib.import_module(package)
    return "\n".join([INTRO, *commands(), *groups(), *python(), *classes()]).rstrip() + "\n"


def commands() -> list[str]:
    """Each script's config: its sentence, and its options with their comments."""
    parts = ["## Commands\n"]
    for file in sorted((ROOT / "conf").glob("*.yaml")):
        about, options = descriptions.about(file), descriptions.options(file)
        script = (ROOT / f"{file.stem}.py").is_file()
        name = f"{file.stem}.py" if script else f"ldm {file.stem}"
        parts += [f"### {name}\n", about + "\n" if about else "", f"```yaml\n{options}\n```\n"]
    return parts


def groups() -> list[str]:
    """Each group's choices, with the comment at the head of their files."""
    parts = ["## Groups\n"]
    for folder in sorted(entry for entry in (ROOT / "conf").iterdir() if entry.is_dir()):
        parts += [f"### {folder.name}=\n", "| choice | |", "|---|---|"]
        for name in descriptions.choices(ROOT / "conf", folder.name):
            about = descriptions.about_choice(folder / f"{name}.yaml").replace("|", "\\|")
            parts.append(f"| `{name}` | {about} |")
        parts.append("")
    return parts


def python() -> list[str]:
    """The names of `ldm.__all__`, and the methods of LatentDiffusion."""
    parts = ["## Python\n"]
    own = set(registered().values())
    for name in ldm.__all__:
        thing = getattr(ldm, name)
        if thing not in own:
            parts += entry(f"ldm.{name}", thing)
    for name, member in inspect.getmembers(ldm.LatentDiffusion, is_ours):
        if not name.startswith("_"):
            parts += entry(f"LatentDiffusion.{name}", member)
    return parts


def is_ours(member: object) -> bool:
    """Whether a method or a property is defined in this package and has a docstring."""
    function = member.fget if isinstance(member, property) else member
    return inspect.isfunction(function) and function.__module__.startswith("ldm.") and bool(function.__doc__)


def classes() -> list[str]:
    """Every class that a config can name, by its module."""
    parts, home = ["## Classes\n"], None
    for cls in sorted(registered().values(), key=lambda cls: (cls.__module__, cls.__name__)):
        if cls.__module__ != home:
            home = cls.__module__
            parts.append(f"### {home}\n")
        parts += entry(cls.__name__, cls)
    return parts


def registered() -> dict[str, type]:
    """The registered classes of this package, not those of a user's modules."""
    return {name: cls for name, cls in registry._CLASSES.items() if cls.__module__.startswith("ldm.")}


def entry(name: str, thing: object) -> list[str]:
    """A name with its signature and its docstring."""
    try:
        signature = str(inspect.signature(thing)).replace("'", "") if callable(thing) else ""
    except ValueError:
        signature = ""
    signature = re.sub(r"<[^<>]*>", "...", re.sub(r"\bself, |\(self\)", "", signature))
    doc = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    return [f"**`{name}`**\n", f"```python\n{name}{signature}\n```\n", doc + "\n" if doc else ""]


if __name__ == "__main__":
    main()
