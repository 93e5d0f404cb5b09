"""Alerts: the banner over all tabs, and the tab where they are set."""

import html
from typing import Any

import gradio as gr

from ldm.common import annotations
from ldm.common.errors import UserError
from ldm.ui.app import App
from ldm.ui.page.messages import told
from ldm.ui.page.parts import quiet
from ldm.ui.runs.alerts import Alarms, Alert, rules_of

LOOK_SECONDS = 5.0


class Banner:
    """The newest alerts over all tabs; new ones also as messages."""

    def __init__(self, app: App):
        self.app = app
        self.html = gr.HTML("", elem_id="alerts")
        self.seen = gr.State(None)
        gr.Timer(LOOK_SECONDS).tick(self.look, self.seen, [self.html, self.seen], **quiet(self.html))

    def look(self, seen: str | None) -> tuple[Any, Any]:
        told_ = list(self.app.alarms.told)
        if seen is not None:
            for alert in reversed([alert for alert in told_ if alert.time > seen]):
                gr.Warning(html.escape(f"{alert.run} {alert.text}"), title=alert.kind)
        newest = told_[0].time if told_ else ""
        return (gr.skip() if newest == seen else listed(told_[:3])), newest


class AlertsTab:
    """Builds the tab inside the current `gr.Blocks`."""

    def __init__(self, app: App):
        self.app = app
        gr.Markdown(
            "Told on every tab, and sent to the webhook: a loss that isn't a number, a run that fails, and what is set "
            "here. Zero turns a rule off.",
            elem_classes="hint",
        )
        with gr.Row():
            rules = app.watcher.rules
            stall = gr.Number(rules.stall_minutes, label="No step for so many minutes", minimum=0)
            disk = gr.Number(rules.disk_gb, label="Less than so many GB free", minimum=0)
        thresholds = gr.Textbox(label="Thresholds, one a line", lines=3, placeholder="val/loss > 2")
        webhook = gr.Textbox(
            label="Webhook: gets each alert as JSON by POST", placeholder="https://...", type="password"
        )
        with gr.Row():
            keep = gr.Button("Keep", variant="primary")
            test = gr.Button("Send a test to the webhook")
        told_html = gr.HTML()
        fields = [stall, disk, thresholds, webhook]
        keep.click(told(self.keep), fields, told_html, api_name="set_alerts", preprocess=False)
        test.click(told(self.test), webhook, told_html, api_visibility="private")
        self.outputs = [*fields, told_html]

    def look(self) -> list[Any]:
        """The rules as they are now, whoever set them, and what was told."""
        rules = self.app.watcher.rules
        thresholds = "\n".join(map(str, rules.thresholds))
        return [rules.stall_minutes, rules.disk_gb, thresholds, rules.webhook, self.listing()]

    def keep(self, stall_minutes: float, disk_gb: float, thresholds: str, webhook: str) -> str:
        """Sets the rules, for this start and the next ones."""
        numbers = {"stall_minutes": stall_minutes or 0, "disk_gb": disk_gb or 0}
        texts = {"thresholds": thresholds or "", "webhook": webhook or ""}
        for kind, values in ((float, numbers), (str, texts)):
            for what, value in values.items():
                annotations.check_value(value, kind, what)
        kept: dict[str, Any] = numbers | texts
        self.app.watcher.rules = rules_of(**kept)
        self.app.store.remember("alerts", kept)
        gr.Info("The rules are kept.")
        return self.listing()

    def test(self, webhook: str) -> str:
        """Sends an alert that says it is a test."""
        rules_of(0, 0, "", webhook or "")
        if not webhook:
            raise UserError("give the webhook's address first.")
        alarms = Alarms()
        if not alarms.call(webhook.strip(), Alert("test", "", "A test of the webhook.")):
            raise UserError(alarms.troubles[0])
        gr.Info("The webhook took it.")
        return self.listing()

    def listing(self) -> str:
        """All alerts that were told since the start, and trouble with the webhook."""
        trouble = "".join(f'<p class="alert">{html.escape(text)}</p>' for text in self.app.alarms.troubles)
        return trouble + (listed(list(self.app.alarms.told)) or '<p class="hint">Nothing was told yet.</p>')


def listed(alerts: list[Alert]) -> str:
    return "".join(
        f'<p class="alert"><b>{html.escape(a.kind)}</b> {html.escape(a.run)} {html.escape(a.text)} <i>{a.time}</i></p>'
        for a in alerts
    )
