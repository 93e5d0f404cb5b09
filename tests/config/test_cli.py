"""The command line: what reaches the work, and what is refused in one line."""

import os
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ldm.commands import cli
from ldm.common.errors import UserError

ROOT = Path(__file__).parents[2]


class Work(types.ModuleType):
    """Stands in for training: records what it is called with, and fails for the jobs in `failures`."""

    def __init__(self):
        super().__init__("fake_work")
        self.configs, self.jobs, self.failures = [], [], {}
        self.refuse = lambda config: None

    def main(self, config, job):
        self.configs.append(config)
        self.jobs.append(job)
        if job in self.failures:
            raise self.failures[job]

    def precheck(self, config):
        self.refuse(config)


@pytest.fixture
def work(monkeypatch, tmp_path):
    fake = Work()
    monkeypatch.setitem(sys.modules, "fake_work", fake)
    monkeypatch.setattr(cli, "WORK", dict.fromkeys(cli.WORK, "fake_work"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield fake
    assert not [path for path in tmp_path.iterdir() if path.name in ("outputs", "multirun", ".hydra", "multirun.yaml")]


def refused(capsys, script: str, *words: str) -> str:
    """The one line of error for a command line with a mistake."""
    with pytest.raises(SystemExit) as exit_:
        cli.run(script, list(words))
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_plain_run_gets_a_plain_dict(work):
    cli.run("sample", ["run=emoji", "prompt=it's a cat!, 猫 ${x} [1]", "labels=[3,7]", "guidance=2.5"])
    (config,) = work.configs
    assert type(config) is dict
    assert config["prompt"] == "it's a cat!, 猫 ${x} [1]"
    assert config["labels"] == [3, 7]
    assert config["guidance"] == 2.5
    assert work.jobs == [None]


def test_an_option_of_a_signature_needs_no_plus(work):
    words = [
        "data=digits",
        "trainer.max_steps=7",
        "trainer.detect_anomaly=true",
        "network.depth=2",
        "loader.val_samples=9",
    ]
    cli.run("train_ldm", words)
    (config,) = work.configs
    assert config["trainer"]["max_steps"] == 7
    assert config["trainer"]["detect_anomaly"] is True
    assert config["network"]["depth"] == 2
    assert config["loader"]["val_samples"] == 9
    assert config["resume"] is False


def test_max_time_stays_text(work):
    cli.run("train_vae", ["trainer.max_time=00:00:08:00"])
    assert work.configs[0]["trainer"]["max_time"] == "00:00:08:00"


def test_an_experiment_beats_the_defaults_and_the_command_line_beats_both(work):
    cli.run("train_vae", ["experiment=vae_digits"])
    cli.run("train_vae", ["experiment=vae_digits", "name=mine"])
    assert [c["name"] for c in work.configs] == ["vae_digits", "mine"]
    assert work.configs[0]["data"]["class"] == "Digits"


def test_a_user_s_class_is_registered_by_its_module(work, tmp_path):
    (tmp_path / "my_nets.py").write_text(
        "import ldm\n\n@ldm.register\nclass MyNet:\n    def __init__(self, width=3):\n        pass\n"
    )
    cli.run("train_ldm", ["modules=my_nets", "network.class=MyNet", "network.width=4"])
    assert work.configs[0]["network"]["width"] == 4


@pytest.mark.parametrize(
    ("script", "words", "hint"),
    [
        ("train_ldm", ["nmae=x"], "Did you mean 'name'?"),
        ("train_ldm", ["netwrok=unet"], "Did you mean 'network'?"),
        ("train_ldm", ["data=emojii"], "Did you mean 'emoji'?"),
        ("train_ldm", ["network.chanels=3"], "Did you mean 'channels'?"),
        ("train_ldm", ["trainer.max_step=3"], "Did you mean 'max_steps'?"),
        ("train_ldm", ["optimizer.lrr=3"], "Did you mean 'lr'?"),
        ("train_ldm", ["diffusion=flow", "diffusion.parameterization.tmax=3"], "Did you mean 't_max'?"),
        ("train_ldm", ["diffusion.sampling.etta=1"], "Did you mean 'eta'?"),
        ("train_ldm", ["checkpoint.every_n_step=1"], "Did you mean 'every_n_steps'?"),
        ("train_ldm", ["seed=abc"], "give a whole number"),
        ("train_ldm", ["batch_size=0"], "batch_size=0: has to be at least 1"),
        ("train_ldm", ["ema.decay=2"], "between 0 and 1"),
        ("train_ldm", ["ema.lengths=[x]"], "ema.lengths=[x]: give a list of values, each a number"),
        ("train_ldm", ["latents=x"], "give cached or online"),
        ("train_ldm", ["optimizer.betas=3"], "optimizer.betas=3: give a list of values, each a number"),
        ("train_ldm", ["trainer.max_time=8"], "DD:HH:MM:SS"),
        ("train_ldm", ["trainer.max_epochs=3"], "trainer.max_epochs=3: a run ends after trainer.max_steps or"),
        ("train_ldm", ["trainer.callbacks=[]"], "trainer.callbacks=[]: a run has its own callbacks"),
        ("train_vae", ["trainer.min_steps=3"], "trainer.min_steps=3: a run ends after trainer.max_steps or"),
        ("train_ldm", ["trainer.max_steps=0"], "max_steps=0 trains nothing"),
        ("train_ldm", ["trainer.max_steps=many"], "trainer.max_steps=many: give a whole number"),
        ("train_vae", ["data=folder", "data.root=/a ${b}"], "write \\${ if ${ is meant as text"),
        ("train_vae", ["data=folder", "data.root=/a ${b c}"], "write \\${ if ${ is meant as text"),
        ("train_ldm", ["data.n=x"], "data.n=x: give a whole number"),
        ("train_vae", ["beta=-1"], "beta=-1: has to be at least 0"),
        ("train_vae", ["vae.multipliers=[1,x]"], "vae.multipliers=[1,x]: give a list of values, each a number"),
        ("sample", ["run=x", "steps=abc"], "steps=abc: give a whole number"),
        ("sample", ["run=x", "n=1.5"], "n=1.5: give a whole number"),
        ("evaluate", ["run=x", "guidance=much"], "guidance=much: give a number"),
        ("evaluate", ["run=x", "seeds=0"], "seeds=0: has to be at least 1"),
        ("train_ldm", ["latents=null"], "latents=null: give cached or online"),
        ("train_ldm", ["modules=[nope]"], "No module named 'nope'"),
        ("train_vae", ["network=unet"], "no group network"),
        ("train_ldm", ["network.attention=false"], "network=unet chooses the U-Net"),
        ("train_ldm", ["network.class=UNet"], "network=unet has the sizes of a UNet"),
        ("train_vae", ["experiment=emoji_map"], "is for stage two"),
        ("sample", [], "run= (a run, by name or path)"),
        ("sample", ["run=x", "n=1,2"], "-m"),
        ("sample", ["run=x", "labels=[3,猫]"], "quotes"),
        ("sample", ["run=x", "a", "cat"], "KEY=VALUE"),
        ("sample", ["run=x", "out=${nope}"], "nope"),
    ],
)
def test_a_mistake_is_refused_in_one_line(work, capsys, script, words, hint):
    assert hint in refused(capsys, script, *words)
    assert work.configs == []


def test_all_missing_values_are_named_at_once(work, capsys, tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "open.yaml").write_text("class: Folder\nroot: ???\nsize: ???\n")
    line = refused(capsys, "train_vae", f"--config-dir={tmp_path / 'mine'}", "data=open")
    assert "data.root= (a folder or a .zip of images)" in line
    assert "data.size=" in line


def test_a_tab_in_yaml_is_one_clear_line(work, capsys, tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "tab.yaml").write_text("class: Emoji\n\tsize: 16\n")
    line = refused(capsys, "train_vae", f"--config-dir={tmp_path / 'mine'}", "data=tab")
    assert "tab.yaml, line 2" in line
    assert "not tabs" in line


def test_a_typo_in_an_experiment_file_is_refused(work, capsys, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text("# @package _global_\nbatchsize: 3\n")
    line = refused(capsys, "train_vae", f"--config-dir={tmp_path / 'mine'}", "experiment=mine")
    assert "Did you mean 'batch_size'?" in line


def test_a_users_error_in_the_work_is_one_line(work, capsys):
    work.failures[None] = UserError("the run exists")
    assert refused(capsys, "sample", "run=x") == "error: the run exists"


def test_a_bug_in_the_work_keeps_its_traceback(work):
    work.failures[None] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        cli.run("sample", ["run=x"])


def test_a_sweep_names_its_jobs_by_what_is_swept(work):
    cli.run("train_ldm", ["seed=3", "network.channels=32,48", "-m", "diffusion=eps,flow", "data=digits"])
    expected = [f"channels-{c}_diffusion-{d}" for c in (32, 48) for d in ("eps", "flow")]
    assert work.jobs == expected
    assert [config["network"]["channels"] for config in work.configs] == [32, 32, 48, 48]
    assert all(config["resume"] and config["seed"] == 3 for config in work.configs)


def test_a_sweep_that_overwrites_does_not_resume(work):
    cli.run("train_vae", ["-m", "data=digits", "beta=1,2", "overwrite=true"])
    assert [(config["resume"], config["overwrite"]) for config in work.configs] == [(False, True)] * 2


def test_prompts_stay_raw_in_a_sweep(work):
    cli.run("sample", ["-m", "run=a,b", "prompt=it's a cat, a dog \\ and 猫!"])
    assert [config["run"] for config in work.configs] == ["a", "b"]
    assert {config["prompt"] for config in work.configs} == {"it's a cat, a dog \\ and 猫!"}


def test_a_failed_job_does_not_stop_the_others(work, capsys):
    work.failures = {"n-1": UserError("no room"), "n-2": ZeroDivisionError("a bug")}
    with pytest.raises(SystemExit) as exit_:
        cli.run("sample", ["-m", "run=x", "n=1,2,3"])
    assert exit_.value.code == 1
    assert work.jobs == ["n-1", "n-2", "n-3"]
    err = capsys.readouterr().err
    assert "error: n-1: no room" in err
    assert "ZeroDivisionError: a bug" in err
    assert "2 of the sweep's jobs failed: n-1, n-2" in err


def test_a_sweep_is_refused_whole_before_its_first_job(work, capsys):
    def refuse(config):
        if config["first_stage"] == "gone":
            raise UserError("there is no run 'gone'")

    work.refuse = refuse
    line = refused(capsys, "train_ldm", "-m", "data=digits", "first_stage=there,gone")
    assert line == "error: first_stage-gone: there is no run 'gone'"
    assert work.jobs == []
    assert "Did you mean 'channels'" in refused(capsys, "train_ldm", "-m", "network.chanels=3,4")


def test_main_dispatches_and_hints(work, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ldm", "sample", "run=x"])
    cli.main()
    assert work.configs[0]["run"] == "x"
    monkeypatch.setattr(sys, "argv", ["ldm", "trainvae"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert "Did you mean 'train-vae'?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands_with_a_sentence_each(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["ldm", *words])
    cli.main()
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [name.replace("-", "_") for name, _ in listed] == [*cli.WORK, *cli.PLAIN]
    assert all(sentence[0].isupper() and sentence.endswith(".") for _, sentence in listed)


@pytest.mark.parametrize("command", cli.PLAIN)
def test_help_of_a_command_without_a_config_shows_how_it_is_typed(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["ldm", command, "--help"])
    cli.main()
    text = capsys.readouterr().out
    assert f"\n    ldm {command.replace('_', '-')}" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("script", ["train_vae", "train_ldm", "sample", "evaluate"])
def test_help_names_groups_choices_and_options(capsys, script):
    cli.run(script, ["--help"])
    text = capsys.readouterr().out
    assert f"python {script}.py" in text
    wanted = {"train_vae": ["emoji*", "kl_f8", "beta:"], "train_ldm": ["flow*", "edm", "first_stage:"]}
    wanted |= {"sample": ["run: ???", "guidance:"], "evaluate": ["stage: ldm", "features:"]}
    assert all(word in text for word in wanted[script])


def test_help_is_quick_and_cfg_shows_the_config():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    helped = subprocess.run([sys.executable, ROOT / "train_ldm.py", "--help"], capture_output=True, text=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.5  # neither torch nor Lightning
    assert helped.returncode == 0
    assert "diffusion" in helped.stdout
    shown = subprocess.run(
        [sys.executable, ROOT / "train_ldm.py", "data=digits", "--cfg", "job"], capture_output=True, text=True
    )
    assert "class: Digits" in shown.stdout
    assert "hydra" not in shown.stdout


def test_a_script_exits_with_2_and_no_traceback(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "sample.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: give run= (a run, by name or path).\n"


def test_sampling_does_not_wait_for_lightning(tmp_path):
    """Its import takes as long as everything else before the first step."""
    probe = (
        "import sys; sys.modules['lightning'] = None; from ldm.commands import cli; cli.run('sample', ['run=nowhere'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode and "no run 'nowhere'" in done.stderr, done.stderr
