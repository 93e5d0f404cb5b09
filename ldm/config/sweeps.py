"""The jobs of a sweep: what differs between them, and the config of each before the first one runs."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from ldm.config import overrides
from ldm.config.compose import compose


def each_job(script: str, options: Sequence[str]) -> Iterator[tuple[str, DictConfig, dict[str, Any]]]:
    """Name, config and group choices of every job of a sweep; nothing if a search chooses values as it goes."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(list(options))
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in parsed):
        return
    values: list[list[str | None]] = []
    for override in parsed:
        if override.is_sweep_override():
            values.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            values.append([override.input_line])
    for combination in itertools.product(*values):
        job = [str(word) for word in combination]
        name = overrides.job_name(swept_values(options, job)) or "job"
        yield name, *compose(script, job)


def swept_values(options: Sequence[str], job: Sequence[str] | None = None) -> list[tuple[str, Any]]:
    """Key and value of what differs between the jobs of a sweep.

    These are the overrides of `job` (by default of the job that Hydra is running) except those that all jobs share.
    """
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(list(options))
    shared = {override.key_or_group for override in parsed if not override.is_sweep_override()}
    job = HydraConfig.get().overrides.task if job is None else job
    own = parser.parse_overrides(list(job))
    return [(override.key_or_group, override.value()) for override in own if override.key_or_group not in shared]
