"""The lowest versions that pyproject.toml admits can be named: what `make test-oldest` installs."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.lowest import constraints

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())


def project(dependencies, **extras):
    return {"project": {"name": "ours", "dependencies": dependencies, "optional-dependencies": extras}}


def test_every_requirement_is_held_to_its_lower_bound():
    found = constraints(PYPROJECT)
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in found)
    named = {line.partition("==")[0] for line in found}
    assert named >= {"torch", "lightning", "gradio", "peft", "diffusers", "transformers", "tifffile", "kornia"}
    assert "ldm" not in named


def test_extras_that_name_extras_are_followed():
    given = project(["a>=1.2,<2"], dev=["ours[x,y]", "D >= 3"], x=["b[more]>=0.1"], y=["a>=1.2"])
    assert constraints(given) == ["a==1.2", "b==0.1", "d==3"]


@pytest.mark.parametrize(
    ("requirements", "message"),
    [(["a"], "a has no lower bound"), (["a<2"], "a<2 has no lower bound"), (["a>=1", "A>=2"], "two lower bounds")],
)
def test_a_requirement_that_cant_be_held_to_one_is_named(requirements, message):
    with pytest.raises(ValueError, match=message):
        constraints(project([], dev=requirements))


def test_extras_and_dev_admit_the_same():
    bounds = {}
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PYPROJECT["project"]["dependencies"], *(r for extra in extras for r in extra)]:
        name, versions = re.match(r"([A-Za-z0-9._-]+)(.*)", requirement).groups()
        if not versions.startswith("["):
            assert bounds.setdefault(name.lower(), versions) == versions, f"{name} has other bounds in another extra"
