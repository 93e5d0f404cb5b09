"""The second part: networks of ours and of diffusers, one after the other on the same device."""

import gc
import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.contenders import Case, cases
from benchmarks.gpu.timing import FULL, LEAST, measured, synchronize
from benchmarks.gpu.work import condition, forward, generating, training
from benchmarks.paired import Call, flops
from ldm.networks.computing.compiled import Compiler
from ldm.training.trainer.costs import peak_of

WORKS = {"a training step": training, "generating": generating}
WHO = ("ours", "diffusers")
ABOUT = {"eager": 10.0, "compiled": 90.0}  # seconds that an entry takes, building and compiling included


class Entry(NamedTuple):
    case: Case
    work: str
    mode: str
    who: str

    @property
    def name(self) -> str:
        return f"{self.case.name}, {self.work}, {self.mode}, {self.who}"


def entries(given: list[Case], modes: tuple[str, ...]) -> Iterator[Entry]:
    """All eager ones first: compiling takes most of the time."""
    for mode in modes:
        for case in given:
            for work in WORKS:
                yield from (Entry(case, work, mode, who) for who in WHO)


def run(budget: Budget, device: torch.device) -> dict[str, Any]:
    """A row for each entry that the time allows, what failed, and how far apart the equal networks' results are."""
    gpu = device.type == "cuda"
    dtype = computes_in(device)
    given, rows, failed = cases(tiny=not gpu), {}, {}
    torch.manual_seed(0)
    for entry in entries(given, ("eager", "compiled") if gpu else ("eager",)):
        if entry.who == "diffusers" and importlib.util.find_spec("diffusers") is None:
            continue
        if not budget.fits(entry.name, ABOUT[entry.mode] if gpu else 0.0):
            continue
        print(f"{entry.name} ...", flush=True)
        try:
            rows[entry.name] = row(entry, device, dtype, rows)
        except Exception as error:  # the others are still measured
            failed[entry.name] = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    found = {"dtype": str(dtype).removeprefix("torch."), "rows": rows, "failed": failed}
    notes = [f"{case.name}: {case.note}" for case in given if case.note]
    return found | {"differences": differences(given, device, budget, failed), "notes": notes}


def computes_in(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def row(entry: Entry, device: torch.device, dtype: torch.dtype, rows: dict[str, Any]) -> dict[str, Any]:
    """The figures of an entry at the largest batch that fits: the case's own, halved as often as needed."""
    batch = entry.case.batches[list(WORKS).index(entry.work)]
    rival = rows.get(entry._replace(who="ours", mode="eager").name)
    batch = min(batch, rival["batch"]) if rival else batch
    while True:
        try:
            return at_batch(entry, device, dtype, batch, rows)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        finally:
            cleared()


def at_batch(
    entry: Entry, device: torch.device, dtype: torch.dtype, batch: int, rows: dict[str, Any]
) -> dict[str, Any]:
    network, call = built(entry, device, dtype, batch)
    eager = rows.get(entry._replace(mode="eager").name, {})
    work = eager["flops"] if eager.get("batch") == batch else flops(call)
    if entry.mode == "compiled":
        torch.compiler.reset()  # what was compiled for other networks
        compile_as_shipped(network, entry.who)
    found = measured(call, device, FULL if device.type == "cuda" else LEAST)
    seconds = found.pop("seconds")
    peak = peak_of(device, {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}.get(dtype, "32-true"))
    return {
        "case": entry.case.name,
        "work": entry.work,
        "mode": entry.mode,
        "who": entry.who,
        "batch": batch,
        "samples_per_s": {"median": batch / seconds["median"], "least": batch / seconds["most"]}
        | {"most": batch / seconds["least"]},
        "flops": work,
        "share_of_peak": None if peak is None else work / seconds["median"] / peak,
        "host_ms": 1e3 * found["host"],
        "step_ms": 1e3 * seconds["median"],
        "peak_gb": found["peak_gb"],
    }


def built(entry: Entry, device: torch.device, dtype: torch.dtype, batch: int) -> tuple[nn.Module, Call]:
    """Our networks in channels_last, as in training and generating; diffusers' as shipped."""
    with torch.device(device):
        network = entry.case.ours() if entry.who == "ours" else entry.case.theirs()
    network = network.to(device)  # what comes out of NumPy
    if entry.who == "ours":
        network = network.to(memory_format=torch.channels_last)
    if entry.work == "generating":
        network = network.eval().requires_grad_(False).to(dtype)
    return network, WORKS[entry.work](entry.case, entry.who, network, batch, device, dtype)


def compile_as_shipped(network: nn.Module, who: str, backend: str = "inductor") -> None:
    """Ours as `compile=true` has it; diffusers' by their modules' own `compile`, for the shapes that come. Of an
    autoencoder both halves, whose own methods are called; else the whole."""
    halves = [(name, part) for name, part in network.named_children() if name in ("encoder", "decoder")]
    compiler = Compiler(backend)
    for name, part in halves or [("denoiser", network)]:
        if who == "ours":
            compiler(part, name)
        else:
            part.compile(dynamic=False, backend=backend)


@torch.no_grad()
def differences(given: list[Case], device: torch.device, budget: Budget, failed: dict[str, str]) -> dict[str, float]:
    """The largest difference of both networks' results on the same weights in float32, by their standard deviation."""
    found = {}
    for case in given:
        name = f"{case.name}, the same function"
        if case.equal and importlib.util.find_spec("diffusers") and budget.fits(name):
            try:
                found[case.name] = same(case, device)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            cleared()
    return found


def same(case: Case, device: torch.device) -> float:
    with torch.device(device):
        ours, theirs = (build().to(device).eval() for build in (case.ours, case.theirs))
    ours.load_state_dict(theirs.state_dict())
    return difference(case, ours, theirs, device)


def difference(case: Case, ours: Any, theirs: Any, device: torch.device) -> float:
    x = torch.randn(2, 3 if case.kind == "vae" else 4, case.side, case.side, device=device)
    if case.kind == "vae":
        own, other = ours.decode(ours.encode(x).mode()), theirs.decode(theirs.encode(x).latent_dist.mode()).sample
    else:
        t, given = torch.full((2,), 500.0, device=device), condition(case, "ours", 2, device)
        own, other = (forward(case.kind, who)(net, x, t, given) for who, net in zip(WHO, (ours, theirs), strict=True))
    synchronize(device)
    return float((own - other).abs().max() / other.std())


def cleared() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
