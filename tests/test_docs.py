"""What README and docs name exists: modules and their names, files, linked pages and headings."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += sorted(DOCS.glob("*.md"))
_FENCED = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"`((?:ldm|tests|benchmarks|conf|docs)/[\w/.*-]+|[\w-]+/[\w/-]+\.py)`")
_NAME = re.compile(r"(?:`|^\s*(?:from|import) )(ldm(?:\.\w+)+)(?: import (\w+))?", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    homes = (ROOT, ROOT / "ldm", ROOT / "tests")  # rooms and tests are also named from within
    wrong = [name for name in _FILE.findall(text) if not any(any(home.glob(name.rstrip("/"))) for home in homes)]
    wrong += [
        f"{name} {more}" for name, more in _NAME.findall(text) if not _exists([*name.split("."), *filter(None, [more])])
    ]
    assert not wrong, f"{page.name} names what there isn't: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text("utf-8"))):
        target, _, anchor = link.partition("#")
        if link.startswith(("http:", "https:")):
            continue
        to = page.parent / target if target else page
        if not to.exists() or (anchor and anchor not in _anchors(to)):
            wrong.append(link)
    assert not wrong, f"{page.name} links to what there isn't: {wrong}"


def test_the_site_has_every_page_of_docs_and_no_other() -> None:
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml without what its tags name."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    site = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)  # noqa: S506
    assert sorted(_leaves(site["nav"])) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "python.html").read_text("utf-8")
    assert 'id="ldm.load"' in page and 'id="ldm.LatentDiffusion.load_lora"' in page
    assert "fonts.googleapis" not in page and "unpkg" not in page


def _leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [leaf for part in (nav.values() if isinstance(nav, dict) else nav) for leaf in _leaves(part)]  # type: ignore[attr-defined]


@cache
def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings that GitHub and MkDocs agree on."""
    text = _FENCED.sub("", page.read_text("utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading)).strip().lower()
        if (github := plain.replace(" ", "-")) == re.sub(r"[-\s]+", "-", plain):
            found.add(github)
    return found


def _exists(parts: list[str]) -> bool:
    """Whether a dotted name is a module, a name in one, or a public name of ldm; nothing is imported."""
    for n in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:n])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            return n == len(parts) or parts[n] in _defined(file)
    return False


@cache
def _defined(file: Path) -> set[str]:
    """The names at a module's top level, and of a package those that its `__init__` gives on demand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found
