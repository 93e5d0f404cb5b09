"""Training on a GPU: the CPU's gradients and weights, and no step after warm-up makes the host wait."""

import pytest
import torch

import ldm
from tests.gpu.training import Watch, apart, finite, run, steps_apart
from tests.pretend.cases import DIGITS, EMOJI, FINETUNING, QUIET, STAGE_ONE, STAGE_TWO, UNET, VAE, base

pytestmark = pytest.mark.gpu

CASES: dict[str, tuple[str, list[str]]] = {
    **{f"stage one, {name}": ("vae", [*EMOJI, *VAE, *words]) for name, words in STAGE_ONE.items()},
    **{f"{name}": ("ldm", ["first_stage=emoji", *EMOJI, *words]) for name, words in STAGE_TWO.items()},
    "labels": ("ldm", [*DIGITS, *UNET]),
    **{f"fine-tuning, {name}": ("ldm", ["base=base", *EMOJI, *QUIET, *w]) for name, w in FINETUNING.items()},
}
# of gradients against the CPU's in float32, all together: by rounding, in bits of mantissa 24, 11 and 8
APART = {"32-true": 1e-3, "16-mixed": 0.02, "bf16-mixed": 0.1}
MIXED = ["16-mixed", "bf16-mixed"]
TEXT, STAGE_1 = CASES["text"], CASES["stage one, plain"]


@pytest.fixture(scope="module")
def wanted(runs):
    """A case as the CPU trains it, once."""
    found: dict[str, Watch] = {}

    def on_cpu(stage: str, words: list[str]) -> Watch:
        if "base=base" in words:
            base(runs)
        key = " ".join([stage, *words])
        if key not in found:
            with pytest.MonkeyPatch.context() as patch:
                found[key] = run(patch, torch.device("cpu"), stage, runs, *words)
        return found[key]

    return on_cpu


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float32(case, gpu, exact, monkeypatch, runs, wanted):
    stage, words = case
    cpu = wanted(stage, words)
    got = run(monkeypatch, gpu, stage, runs, *words)
    assert apart(got.gradients, cpu.gradients) < APART["32-true"]
    # Muon's products are in bfloat16 on a GPU
    assert steps_apart(got, cpu) < (0.3 if "optimizer.name=muon" in words else 0.05)
    assert finite(ldm.load(runs / stage / "one"))


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("case", [TEXT, STAGE_1], ids=["text", "stage one"])
def test_mixed_precision(case, precision, gpu, monkeypatch, runs, wanted):
    """float16 with a scaler, which the optimizer's kernel and the guard read without the host."""
    stage, words = case
    if precision == "bf16-mixed" and gpu.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    cpu = wanted(stage, words)
    got = run(monkeypatch, gpu, stage, runs, *words, f"trainer.precision={precision}")
    assert apart(got.gradients, cpu.gradients) < APART[precision]
    assert finite(got.after) and apart(got.after, got.before) > 1e-5  # steps weren't left out


@pytest.mark.parametrize("case", [TEXT, CASES["dit"], STAGE_1], ids=["text", "dit", "stage one"])
def test_compiled(case, gpu, exact, monkeypatch, runs, wanted):
    if gpu.type != "cuda":
        pytest.skip("compiling takes minutes on a CPU")
    stage, words = case
    got, cpu = run(monkeypatch, gpu, stage, runs, *words, "compile=true"), wanted(stage, words)
    assert steps_apart(got, cpu) < 0.05


def test_gradient_checkpointing(gpu, exact, monkeypatch, runs, wanted):
    stage, words = TEXT
    got = run(monkeypatch, gpu, stage, runs, *words, "gradient_checkpointing=true")
    assert apart(got.gradients, wanted(stage, words).gradients) < APART["32-true"]


def test_workers_and_pinned_memory(gpu, exact, monkeypatch, runs, wanted):
    stage, words = TEXT
    got = run(monkeypatch, gpu, stage, runs, *words, "loader.workers=2")
    assert got.loader["num_workers"] == 2 and got.loader["pin_memory"] == (gpu.type == "cuda")
    assert apart(got.gradients, wanted(stage, words).gradients) < APART["32-true"]
