"""Which of the processes of a distributed run this one is, known before they have met."""

import os


def rank() -> int:
    """0 for the only process or the first one, as torchrun, Lightning's launcher or SLURM number them."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if (value := os.environ.get(name, "")).isdigit():
            return int(value)
    return 0
