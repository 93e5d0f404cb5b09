"""Which recipe of stage two is best in equal wall-clock time? Arms are Hydra overrides, benchmarks/conf/arm/*.yaml.

    python benchmarks/ablation.py data=emoji                       # screen: every arm, one seed, 120 s each
    python benchmarks/ablation.py data=emoji stage=final           # the best baseline and the best four others, 3 seeds
    python benchmarks/ablation.py data=folder data.root=characters_train.zip name=characters network.channels=[96,192]

Options of its own: stage, name, seconds, vae_seconds, seeds=0,1,2, arms=edm,flow, budget (seconds for this call), n,
tune_n, guidances=1,2,3, features, first_stage, runs_dir, table (a Markdown file to write the table into). All other
words go to train_ldm.py (and data's to train_vae.py) as they are.

Every arm trains for `seconds` of wall-clock time, on one first stage whose latents are encoded beforehand. Its guidance
scale is then tuned on `tune_n` images of seeds that are not used again, from the same list for every arm, and `n`
images are scored at the best. Each finished arm leaves a JSON, so a later call continues where an earlier one ended.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ldm
from ldm.artifact import to_json
from ldm.commands.evaluate import data_of, features_for
from ldm.common.files import atomic_write
from ldm.common.randomness import permutation
from ldm.data.caches.latents import cached_latents
from ldm.data.storage.table import Table
from ldm.evaluation.generated import example_conditions, generate_set
from ldm.evaluation.measures.features import Features
from ldm.evaluation.measures.image_set import ImageSet
from ldm.evaluation.report import spread
from ldm.evaluation.scoring import NetworkCalls, score
from ldm.model.latent_diffusion import LatentDiffusion

ROOT = Path(__file__).parents[1]
ARMS = Path(__file__).parent / "conf"
TUNING_SEED = 10**6
OPTIONS: dict[str, Any] = {
    "stage": "screen",
    "name": None,
    "seconds": 120,
    "vae_seconds": 90,
    "seeds": None,
    "arms": None,
    "budget": 10**9,
    "n": 400,
    "tune_n": 150,
    "guidances": "1,1.5,2,3,4.5",
    "features": "own",
    "first_stage": None,
    "runs_dir": "runs",
    "reference_n": 1000,
    "costs": False,
    "table": None,
    "best": 4,
}


def main(words: Sequence[str]) -> None:
    """Trains and scores what is missing, as far as the budget goes, and prints the table."""
    started = time.monotonic()
    o, passed = parse(words)
    out = Path(o["runs_dir"]) / "ablation" / o["name"]
    out.mkdir(parents=True, exist_ok=True)
    vae = first_stage(o, passed)
    tables = warm(vae, o)
    for seed in o["seeds"]:
        pending = [arm for arm in chosen_arms(o, out) if not (out / file_of(arm, seed, o)).exists()]
        left = o["budget"] - (time.monotonic() - started)
        fitting = pending[: max(0, int(left // (1.5 * o["seconds"])))]
        if len(fitting) < len(pending):
            print(f"budget: {len(fitting)} of {len(pending)} pending arms of seed {seed}", flush=True)
        if fitting:
            train(fitting, seed, vae, o, passed)
        for arm in fitting:
            result = evaluated(arm, seed, tables, o)
            atomic_write(out / file_of(arm, seed, o), to_json(result))
            print(f"{arm}, seed {seed}: {result.get('FD', result.get('error'))}", flush=True)
    text = table(results(out, o), o)
    print(text)
    if o["table"]:
        put(Path(o["table"]), f"ablation {o['name']} {o['stage']}", text)


def parse(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """This script's options, and the words that train_ldm.py gets."""
    own, passed = dict(OPTIONS), []
    for word in words:
        key, _, value = word.partition("=")
        if key in OPTIONS:
            kind = type(OPTIONS[key])
            own[key] = kind(float(value)) if kind is int else value == "true" if kind is bool else value
        else:
            passed.append(word)
    given = dict(word.partition("=")[::2] for word in passed)
    if os.environ.get("LDM_FAST"):  # as in the trainings: a trial of the benchmark, not of the arms
        own |= {"n": 8, "tune_n": 8, "guidances": "1", "reference_n": 64, "features": "random"}
    own["name"] = own["name"] or given.get("data", "emoji")
    own["seeds"] = [int(s) for s in (own["seeds"] or ("0" if own["stage"] == "screen" else "0,1,2")).split(",")]
    own["guidances"] = [float(g) for g in own["guidances"].split(",")]
    own["arms"] = own["arms"].split(",") if own["arms"] else None
    return own, passed


def first_stage(o: Mapping[str, Any], passed: Sequence[str]) -> Path:
    """The autoencoder that all arms share, trained once."""
    if o["first_stage"]:
        return Path(o["runs_dir"]) / "vae" / o["first_stage"]
    name = f"ablation-{o['name']}"
    data = [word for word in passed if re.match(r"(data|vae|trainer\.accelerator|trainer\.devices)[.=]", word)]
    limit = f"trainer.max_time={clock(o['vae_seconds'])}"
    run("train_vae.py", [*data, f"name={name}", f"runs_dir={o['runs_dir']}", limit, "resume=true", "logger=none"])
    return Path(o["runs_dir"]) / "vae" / name


def warm(vae: Path, o: Mapping[str, Any]) -> tuple[Table, Table]:
    """Prepares the data and encodes the latents, so that no arm has to spend its time on it."""
    tables = data_of(vae, {"cache_dir": cache(o)})
    loaded = ldm.load(vae)
    for split in tables:
        cached_latents(split, loaded, Path(cache(o)))
    print(f"{vae}: {len(tables[0])} images for all arms", flush=True)
    return tables


def train(arms: Sequence[str], seed: int, vae: Path, o: Mapping[str, Any], passed: Sequence[str]) -> None:
    """One Hydra sweep over the arms; one that fails doesn't stop the others, finished ones are skipped."""
    named = [f"first_stage={vae}", f"name={run_name(seed, o)}", f"runs_dir={o['runs_dir']}", f"seed={seed}"]
    limit = [f"trainer.max_time={clock(o['seconds'])}", "samples.every_n_steps=1000000000"]
    sweep = f"+arm=choice({','.join(arms)})"  # choice() makes a sweep even of one arm
    run("train_ldm.py", ["-m", f"--config-dir={ARMS}", *passed, sweep, *named, "logger=none", *limit], may_end=(0, 1))


def evaluated(arm: str, seed: int, tables: tuple[Table, Table], o: Mapping[str, Any]) -> dict[str, Any]:
    """The arm's figures at its best guidance, or what went wrong."""
    path = folder(arm, seed, o)
    about = {"arm": arm, "seed": seed, "seconds": o["seconds"], "stage": o["stage"]}
    if path is None:
        return about | {"error": "no finished run"}
    try:
        scoring = Scoring(ldm.load(path), tables, o)  # with gradients, since it may train its features
        with torch.inference_mode():
            scored = scoring.best_of(o["guidances"])
    except Exception as error:  # a failed arm is a result too
        return about | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return about | {"steps trained": steps_of(path), **scored}


class Scoring:
    """Scores images of validation's conditions against validation, with the same features for all arms."""

    def __init__(self, model: LatentDiffusion, tables: tuple[Table, Table], o: Mapping[str, Any]):
        self.model, self.val, self.o = model, tables[1], o
        config = {"features": o["features"], "device": "cpu", "cache_dir": cache(o)}
        self.features: Features = features_for(self.val.preprocess, tables[0], config)
        rows = np.sort(permutation(0, 0, len(self.val))[: o["reference_n"]])
        self.real = self.features.of(ImageSet.of_table(self.val, rows, "validation"), Path(cache(o)))

    def best_of(self, guidances: Sequence[float]) -> dict[str, Any]:
        """Tunes the guidance scale, then scores at the best; with `costs` also at 12 and 100 network evaluations."""
        tried = {str(g): self.at(self.o["tune_n"], TUNING_SEED, guidance=g)["FD"] for g in guidances}
        best = float(min(tried, key=lambda g: tried[g]))
        found = {"guidance": best, "guidance tried": tried, **self.at(self.o["n"], 0, guidance=best)}
        if self.o["costs"]:
            a_step = 1 if best == 1 else 2
            for evaluations in (12, 100):
                at = self.at(self.o["n"], 0, guidance=best, steps=evaluations // a_step)
                found[f"FD at {evaluations} evaluations"] = at["FD"]
        return found

    def at(self, n: int, seed: int, **options: Any) -> dict[str, float]:
        rows = np.resize(permutation(seed, 0, len(self.val)), n)
        given = example_conditions(self.model, self.val, rows, seed)
        with NetworkCalls(self.model.denoiser.network) as count:
            generated = generate_set(self.model, given, n, seed=seed, config={"batch_size": 50}, **options)
        figures = score(self.features.of(generated), self.real, self.features)
        return dict(zip(("FD", "KD", "precision", "recall"), figures.values(), strict=True)) | {
            "evaluations": count.rows / n
        }


def results(out: Path, o: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of all arms of this stage, at this training time."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob(f"{o['stage']}-*.json"))]
    return [one for one in found if one["seconds"] == o["seconds"]]


def table(found: Sequence[Mapping[str, Any]], o: Mapping[str, Any]) -> str:
    """A Markdown table: arms by their mean distance, with the spread over seeds; failed ones come last."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for one in found:
        by_arm.setdefault(one["arm"], []).append(one)
    rows, failed = [], []
    extra = [key for key in ("FD at 12 evaluations", "FD at 100 evaluations") if any(key in one for one in found)]
    for arm, runs in by_arm.items():
        good = [one for one in runs if "FD" in one]
        if good:
            rows.append((spread([one["FD"] for one in good])["mean"], line(arm, good, extra)))
        failed += [f"| {arm} | seed {one['seed']} failed: {one['error']} |" for one in runs if "FD" not in one]
    head = "| arm | seeds | steps | guidance | FD | kernel distance | precision | recall |"
    head += "".join(f" {key} |" for key in extra)
    lines = [text for _, text in sorted(rows)]
    about = (
        f"{o['name']}, {o['stage']}: {o['seconds']} s of training each, guidance tuned over "
        f"{', '.join(f'{g:g}' for g in o['guidances'])} on {o['tune_n']} other images, {o['n']} images against "
        f"{o['reference_n']} validation images, features: {o['features']}."
    )
    return "\n".join([about, "", head, "|---" * (8 + len(extra)) + "|", *lines, *([""] if failed else []), *failed])


def line(arm: str, runs: Sequence[Mapping[str, Any]], extra: Sequence[str]) -> str:
    guidances = "/".join(f"{one['guidance']:g}" for one in runs)
    figures = (mean_of(runs, key) for key in ("FD", "KD", "precision", "recall", *extra))
    return f"| {arm} | {len(runs)} | {mean_of(runs, 'steps trained')} | {guidances} | {' | '.join(figures)} |"


def mean_of(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [one[key] for one in runs if one.get(key) is not None]
    if not values:
        return "-"
    found = spread(values)
    return f"{found['mean']:.4g}" + (f" ± {found['std']:.2g}" if found["std"] is not None else "")


def chosen_arms(o: Mapping[str, Any], out: Path) -> list[str]:
    """All arms; in the final the best baseline and the best of the others, by the screening's distance."""
    if o["arms"]:
        return o["arms"]
    known = sorted(path.stem for path in (ARMS / "arm").glob("*.yaml"))
    if o["stage"] == "screen":
        return known
    screened = [json.loads(path.read_text()) for path in out.glob("screen-*.json")]
    ranked = sorted((one["FD"], one["arm"]) for one in screened if "FD" in one)
    baselines = [arm for _, arm in ranked if arm.startswith("baseline")]
    others = [arm for _, arm in ranked if not arm.startswith("baseline")]
    if not ranked:
        sys.exit("the final takes the best arms of the screening: run stage=screen first, or name them by arms=.")
    return baselines[:1] + others[: o["best"]]


def run(script: str, words: Sequence[str], may_end: Sequence[int] = (0,)) -> None:
    """Runs an entry script. Exit code 1 means that some of a sweep's jobs failed, which is a result; any other, that it
    was refused or stopped from outside, after which the next call continues."""
    print(f"$ python {script} {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / script), *words], check=False).returncode
    if code not in may_end:
        sys.exit(f"{script} ended with exit code {code}; call again to continue from here.")


def put(path: Path, name: str, text: str) -> None:
    """Replaces the block called `name` of a Markdown file, or appends it."""
    block = f"<!-- {name} -->\n{text}\n<!-- end of {name} -->"
    old = path.read_text() if path.exists() else ""
    pattern = re.compile(f"<!-- {re.escape(name)} -->.*?<!-- end of {re.escape(name)} -->", re.DOTALL)
    new = pattern.sub(lambda _: block, old) if pattern.search(old) else f"{old.rstrip()}\n\n{block}\n"
    atomic_write(path, new.lstrip("\n"))


def folder(arm: str, seed: int, o: Mapping[str, Any]) -> Path | None:
    """The finished run of an arm: its job's folder in the sweep's."""
    path = Path(o["runs_dir"]) / "ldm" / run_name(seed, o) / f"arm-{arm}"
    return path if (path / "DONE").exists() else None


def run_name(seed: int, o: Mapping[str, Any]) -> str:
    """The sweep's name: one for each training time and seed."""
    return f"ablation-{o['name']}-{o['seconds']}s-seed{seed}"


def file_of(arm: str, seed: int, o: Mapping[str, Any]) -> str:
    return f"{o['stage']}-{o['seconds']}s-{arm}-{seed}.json"


def steps_of(path: Path) -> int | None:
    names = sorted(file.stem for file in (path / "checkpoints").glob("step-*.ckpt"))
    return int(names[-1].removeprefix("step-")) if names else None


def clock(seconds: int) -> str:
    """Lightning's days:hours:minutes:seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"00:{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def cache(o: Mapping[str, Any]) -> str:
    return str(Path(o["runs_dir"]) / "cache")


if __name__ == "__main__":
    main(sys.argv[1:])
