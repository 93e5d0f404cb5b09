"""The lowest versions that pyproject.toml admits, as pip's constraints: `python tests/lowest.py > constraints.txt`.

Of what is installed to develop and test (`dev`, and the extras that it names). `make test-oldest` installs them.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[([^]]*)\])?\s*(.*)$")
_LOWEST = re.compile(r"(?:>=|==)\s*([0-9][0-9A-Za-z.]*)")


def constraints(pyproject: Mapping[str, Any]) -> list[str]:
    """`name==version` of each requirement, sorted. Raises ValueError naming those that have no lower bound."""
    name = pyproject["project"]["name"]
    found = {}
    for requirement in sorted(set(_requirements(pyproject, "dev"))):
        package, _, versions = _parts(requirement)
        lowest = _LOWEST.search(versions)
        if lowest is None:
            raise ValueError(
                f"{requirement} has no lower bound in pyproject.toml: nothing can test its lowest version."
            )
        if found.setdefault(package, lowest[1]) != lowest[1]:
            raise ValueError(f"{package} has two lower bounds in pyproject.toml: {found[package]} and {lowest[1]}.")
    return [f"{package}=={version}" for package, version in sorted(found.items()) if package != name]


def _requirements(pyproject: Mapping[str, Any], extra: str) -> Iterator[str]:
    """Of the package itself and an extra, with those of the extras that it names in turn."""
    project = pyproject["project"]
    yield from project["dependencies"]
    for requirement in project["optional-dependencies"][extra]:
        package, extras, _ = _parts(requirement)
        if package == project["name"]:
            for inner in extras.split(","):
                yield from _requirements(pyproject, inner.strip())
        else:
            yield requirement


def _parts(requirement: str) -> tuple[str, str, str]:
    """Name, extras and versions."""
    match = _REQUIREMENT.match(requirement)
    assert match, requirement
    return match[1].lower(), match[2] or "", match[3]


if __name__ == "__main__":
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    sys.stdout.write("\n".join(constraints(tomllib.loads(text))) + "\n")
