"""Every command line of README and docs/ is run, with its work cut to two steps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from documents import ROOT, Command, commands, documents, environment, workspace  # noqa: E402

PREPARED = ("vae", "ldm")


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=1800
    )


def again(line: str) -> str:
    """A training that an earlier document did too starts again."""
    trains = re.search(r"train[_-](vae|ldm)", line) and not re.search(r"--help|--cfg|resume=|overwrite=| -m ", line)
    return f"{line.partition('  #')[0]} overwrite=true" if trains else line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder in which emoji, digits and photos are trained."""
    folder = workspace(tmp_path_factory.mktemp("reader"))
    for words in ("data=emoji", "data=digits", "data=folder data.root=photos.zip data.size=64 name=photos"):
        for stage in PREPARED:
            first = " first_stage=photos" if stage == "ldm" and "photos" in words else ""
            done = run(f"python train_{stage}.py {words}{first}", folder)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("document", documents(), ids=lambda path: path.stem)
def test_every_command_runs(document: Path, folder: Path) -> None:
    failed = []
    for command in commands(document):
        if command.not_run is None:
            done = run(again(command.line), folder)
            if done.returncode:
                failed.append(f"{command.where}: {command.line}\n{done.stderr[-1500:]}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.slow
def test_the_readmes_python_runs(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "block.py").write_text("\n".join(blocks))
    done = run("python block.py", folder)
    assert done.returncode == 0, done.stderr


def test_the_chinese_readme_has_the_same_commands() -> None:
    english, chinese = (lines(commands(ROOT / name)) for name in ("README.md", "README.zh.md"))
    assert chinese == english


def test_links_lead_somewhere() -> None:
    for document in [*documents(), ROOT / "README.zh.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8")):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"


def test_a_reason_stands_before_what_is_not_run(tmp_path: Path) -> None:
    text = (
        "    python a.py\n\n```sh\nldm b \\\n  c=1\n```\n\n<!-- not run: a GPU -->\n```sh\npython d.py\n```\n"
        "text\n```python\npython = 1\n```\n"
    )
    (tmp_path / "x.md").write_text(text)
    assert [(c.line, c.not_run) for c in commands(tmp_path / "x.md")] == [
        ("python a.py", None),
        ("ldm b c=1", None),
        ("python d.py", "a GPU"),
    ]


def lines(found: list[Command]) -> list[str]:
    return [command.line.partition("  #")[0].strip() for command in found]
