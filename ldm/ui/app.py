"""What stands behind the page, put together once for the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.ui.generating.generate import Painter
from ldm.ui.generating.models import Models
from ldm.ui.generating.store import Shown, Store
from ldm.ui.runs.alerts import Alarms, Rules, rules_of
from ldm.ui.runs.launch import Launcher
from ldm.ui.runs.watch import Watcher


@dataclass
class App:
    """The parts that the pages share."""

    runs_dir: Path
    models: Models
    store: Store
    painter: Painter
    launcher: Launcher
    alarms: Alarms
    watcher: Watcher
    shown: Shown

    def close(self) -> None:
        self.watcher.close()
        self.shown.close()


def make(
    runs_dir: str | Path,
    run: str | None = None,
    device: str = "cpu",
    webhook: str = "",
    watch_s: float = 5.0,
    coding: Mapping[str, Any] | None = None,
) -> App:
    """The parts for the runs under `runs_dir`, the alert rules as they were kept. Raises UserError for a `run` that
    isn't there. `coding` is how networks are computed, for `ldm.load`."""
    root = Path(runs_dir).expanduser()
    store = Store(root / "app")
    models = Models(root, run, device, coding)
    launcher, alarms = Launcher(root, store.folder), Alarms()
    watcher = Watcher(root, launcher, alarms, watch_s)
    watcher.rules = kept_rules(store, webhook)
    return App(root, models, store, Painter(models, store), launcher, alarms, watcher, Shown())


def kept_rules(store: Store, webhook: str = "") -> Rules:
    """The alert rules of the last start; a webhook given at the start counts more."""
    kept = store.recall("alerts")
    try:
        return rules_of(
            float(kept.get("stall_minutes", 10)),
            float(kept.get("disk_gb", 1)),
            str(kept.get("thresholds", "")),
            webhook or str(kept.get("webhook", "")),
        )
    except ValueError:
        return Rules(webhook=webhook)
