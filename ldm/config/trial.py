"""LDM_FAST: a config cut down to a trial, with which every command line in the documentation is tested in seconds."""

from typing import Any


def cut_to_trial(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """The config with at most `steps` training and sampling steps; 0 leaves it unchanged.

    The environment variable LDM_FAST gives the number. All code of a command runs, but its result is worth nothing.
    """
    if not steps:
        return config
    if "trainer" in config:
        given = config["trainer"].get("max_steps") or -1
        fewer = min(given, steps) if given > 0 else steps
        config["trainer"] |= {"max_steps": fewer, "max_time": None, "limit_val_batches": 1}
        if "samples" in config:
            config["samples"]["n"] = min(config["samples"]["n"], 2)
        if "distance" in config:  # as few images as it accepts, if there are to be any
            config["distance"] |= {"n": config["distance"]["n"] and 8, "steps": steps, "features": "random"}
    elif "reference_n" in config:  # evaluate: as few images as its distances accept
        config |= {"n": 8, "seeds": 1, "reference_n": 64, "features": "random"}
        config["curve"]["n"] = 8
    if config.get("stage") == "ldm":
        config["steps"] = steps
    return config
