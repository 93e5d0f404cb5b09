"""What stands behind the page, put together once for the server."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from ldm.ui.alerts import Alarms, Rules, rules_of
from ldm.ui.generate import Painter
from ldm.ui.launch import Launcher
from ldm.ui.models import Models
from ldm.ui.store import Shown, Store
from ldm.ui.watch import Watcher


@dataclass
class App:
    """The parts that the pages share. `cancels` has by browser session what ends its drawing."""

    runs_dir: Path
    models: Models
    store: Store
    painter: Painter
    launcher: Launcher
    alarms: Alarms
    watcher: Watcher
    shown: Shown
    cancels: dict[str, threading.Event] = field(default_factory=dict)

    def cancel_of(self, session: str | None) -> threading.Event:
        """A new event for a drawing of this session, which `cancel` sets."""
        event = threading.Event()
        self.cancels[session or ""] = event
        return event

    def cancel(self, session: str | None) -> bool:
        event = self.cancels.get(session or "")
        if event is None or event.is_set():
            return False
        event.set()
        return True

    def ended(self, session: str | None, event: threading.Event) -> None:
        """A drawing of this session is over: there is nothing to cancel, unless another began meanwhile."""
        if self.cancels.get(session or "") is event:
            del self.cancels[session or ""]

    def close(self) -> None:
        self.watcher.close()
        self.shown.close()


def make(
    runs_dir: str | Path, run: str | None = None, device: str = "cpu", webhook: str = "", watch_s: float = 5.0
) -> App:
    """The parts for the runs under `runs_dir`, the alert rules as they were kept. Raises UserError for a `run` that
    isn't there."""
    root = Path(runs_dir).expanduser()
    store = Store(root / "app")
    models = Models(root, run, device)
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
