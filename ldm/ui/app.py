"""The parts behind the page, created once for the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.ui.generating.image_generator import ImageGenerator
from ldm.ui.generating.models import Models
from ldm.ui.generating.page_store import PageStore, ServedFiles
from ldm.ui.runs.alerts import Alerter, Rules, parse_rules
from ldm.ui.runs.launch import Launcher
from ldm.ui.runs.watch import Watcher


@dataclass
class App:
    """The parts that the tabs share."""

    runs_dir: Path
    models: Models
    store: PageStore
    generator: ImageGenerator
    launcher: Launcher
    alerter: Alerter
    watcher: Watcher
    served_files: ServedFiles

    def close(self) -> None:
        """Stops watching runs and removes the served files."""
        self.watcher.close()
        self.served_files.close()


def make_app(
    runs_dir: str | Path,
    run: str | None = None,
    device: str = "cpu",
    webhook: str = "",
    watch_s: float = 5.0,
    coding: Mapping[str, Any] | None = None,
    preview_decoder: str | None = None,
) -> App:
    """The parts for the runs under `runs_dir`, with the stored alert rules.

    `run` is the one that the page starts with, `watch_s` the seconds between two looks at the runs, `coding` how
    networks are computed, for `ldm.load`, and `preview_decoder` a small decoder for previews, by run or path. Raises
    UserError for a `run` or a `preview_decoder` that doesn't exist.
    """
    root = Path(runs_dir).expanduser()
    store = PageStore(root / "app")
    models = Models(root, run, device, coding, preview_decoder=preview_decoder)
    launcher, alerter = Launcher(root, store.folder), Alerter()
    watcher = Watcher(root, launcher, alerter, watch_s)
    watcher.rules = _kept_rules(store, webhook)
    return App(
        root,
        models,
        store,
        generator=ImageGenerator(models, store),
        launcher=launcher,
        alerter=alerter,
        watcher=watcher,
        served_files=ServedFiles(),
    )


def _kept_rules(store: PageStore, webhook: str = "") -> Rules:
    """The stored alert rules; a webhook given at the start takes precedence."""
    kept = store.recall("alerts")
    try:
        return parse_rules(
            float(kept.get("stall_minutes", 10)),
            float(kept.get("disk_gb", 1)),
            str(kept.get("thresholds", "")),
            webhook or str(kept.get("webhook", "")),
        )
    except ValueError:
        return Rules(webhook=webhook)
