"""What steps cost: images per second, memory, and on a GPU the share of its peak performance."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm.training.trainer.sharded import is_sharded

# TFLOP/s without sparsity, by the words of the name that torch gives: in bfloat16 or float16 with sums in float32, and
# in float32 as training multiplies it, which is TF32, or float32 on GPUs that don't have it. NVIDIA's sheets mostly
# print the figures with sparsity, which are twice these.
PEAKS = {
    # https://resources.nvidia.com/en-us-blackwell-architecture (HGX B200: 4.5 and 2.2 PFLOPS with sparsity)
    "B200": (2250.0, 1100.0),
    # https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446
    "H200": (989.4, 494.7),
    "H200 NVL": (835.0, 417.5),
    # https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet
    "H100": (989.4, 494.7),
    "H100 NVL": (835.0, 417.5),
    "H100 PCIe": (756.0, 378.0),
    # nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    "A100": (312.0, 156.0),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf
    "A10": (125.0, 62.5),
    # https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf
    "A40": (149.7, 74.8),
    "RTX A6000": (154.8, 77.4),
    "RTX 3090": (71.0, 35.6),
    # https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf
    "L4": (121.0, 60.0),
    "RTX 4090": (165.2, 82.6),
    # https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413 (733 and 366 with sparsity)
    "L40S": (362.0, 183.0),
    # https://images.nvidia.com/content/volta-architecture/pdf/volta-architecture-whitepaper.pdf; PCIe: its data sheet
    "V100": (125.0, 15.7),
    "V100 PCIE": (112.0, 14.0),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf
    "T4": (65.0, 8.1),
}
WITHOUT_BFLOAT16 = {"V100", "T4"}
OTHERS = {"Laptop", "MIG", "Ti", "D", "Max", "SUPER"}  # cards of such names have another peak


class Throughput:
    """Samples per second since the last call. `position` is the number of samples seen so far."""

    def __init__(self) -> None:
        self._position, self._time = 0, time.monotonic()

    def __call__(self, position: int) -> float:
        now = time.monotonic()
        rate = (position - self._position) / max(now - self._time, 1e-9)
        self._position, self._time = position, now
        return rate


class Costs(pl.Callback):
    """Logs `speed/...` at the steps at which the task logs its figures, and adds them to the task's `shown`.

    On a GPU whose peak is known, the operations of the forward and backward pass are counted in the first batch, for
    which networks run uncompiled. What is computed twice (`gradient_checkpointing=true`) counts twice.
    """

    def __init__(self) -> None:
        self._rate, self._images = Throughput(), 0
        self._peak: float | None = None
        self._counter: FlopCounterMode | None = None
        self._flops: float | None = None  # per image

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts to measure the speed, and looks up the device's peak."""
        self._rate(trainer.datamodule.position)  # type: ignore[attr-defined]
        self._peak = None if is_sharded(pl_module) else peak_of(trainer.strategy.root_device, str(trainer.precision))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts to count the operations of the first batch, without compiling: the counter sees eager code."""
        if self._peak and self._flops is None:
            torch.compiler.set_stance("force_eager")
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
            self._images = len(batch["position"])

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Ends the count of operations, which holds for every image."""
        if self._counter is not None:
            self._flops = self._counter.get_total_flops() / self._images
            self._stop_counting()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Ends the count, which is global."""
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None
            torch.compiler.set_stance("default")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs images per second, memory in GB and the share of the device's peak, every `every` steps."""
        if trainer.global_step % pl_module.every or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rate = self._rate(data.position + data.batch_size)  # this batch isn't counted yet
        found = {"images_per_s": rate, "memory_gb": peak_memory(trainer.strategy.root_device)}
        if self._peak and self._flops is not None:
            found["share_of_peak"] = self._flops * rate / trainer.world_size / self._peak
        known = {name: value for name, value in found.items() if value is not None}
        pl_module.shown.update(known)
        pl_module.log_dict({f"speed/{name}": value for name, value in known.items()})


def peak_of(device: torch.device, precision: str) -> float | None:
    """The operations per second of a CUDA GPU in a trainer's precision, by its data sheet; None if it isn't known."""
    return peak_by_name(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_by_name(name: str, precision: str) -> float | None:
    """The peak, as in `peak_of`, of the GPU that torch reports under this name."""
    words = set(name.replace("-", " ").split())
    fitting = [key for key in PEAKS if set(key.split()) <= words]
    if not fitting or words & OTHERS or precision.startswith("64"):
        return None
    if precision.startswith("bf16") and words & WITHOUT_BFLOAT16:
        return None
    half, single = PEAKS[max(fitting, key=lambda key: len(key.split()))]
    return 1e12 * (half if precision.startswith(("bf16", "16")) else single)


def peak_memory(device: torch.device) -> float | None:
    """The peak memory of this process in GB (10^9 bytes): of tensors on a CUDA GPU, else of the whole process.

    None where the system doesn't report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / 1e9
    except (OSError, StopIteration):
        return _most_resident()


def _most_resident() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def in_words(shown: dict[str, float]) -> dict[str, str]:
    """A task's figures for the progress line or bar, under the names used there."""
    words = {}
    bands = [f"{shown[f'loss_q{i}']:.3g}" for i in range(1, 5) if f"loss_q{i}" in shown]
    if bands:
        words["by noise"] = " ".join(bands)
    if "grad_norm" in shown:
        words["norm"] = f"{shown['grad_norm']:.3g}"
    if "fd" in shown:
        words["val/fd"] = f"{shown['fd']:.4g}"
    if "memorised" in shown:
        words["val/memorised"] = f"{shown['memorised']:.0%}"
    if "memory_gb" in shown:
        words["GB"] = f"{shown['memory_gb']:.3g}"
    if "share_of_peak" in shown:
        words["of peak"] = f"{shown['share_of_peak']:.0%}"
    return words
