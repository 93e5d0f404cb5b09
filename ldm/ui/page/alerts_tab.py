"""Alerts: the banner over all tabs, and the tab where they are set."""

import html
from typing import Any

import gradio as gr

from ldm.common import annotations
from ldm.common.errors import UserError
from ldm.ui.app import App
from ldm.ui.page.messages import show_errors
from ldm.ui.page.widgets import quiet_event
from ldm.ui.runs.alerts import Alert, Alerter, parse_rules

LOOK_SECONDS = 5.0


class Banner:
    """The newest alerts over all tabs; new ones also as messages."""

    def __init__(self, app: App):
        self.app = app
        self.html = gr.HTML("", elem_id="alerts")
        self.seen = gr.State(None)
        gr.Timer(LOOK_SECONDS).tick(self.look, self.seen, [self.html, self.seen], **quiet_event(self.html))

    def look(self, seen: str | None) -> tuple[Any, Any]:
        alerts = list(self.app.alerter.raised)
        if seen is not None:
            for alert in reversed([alert for alert in alerts if alert.time > seen]):
                gr.Warning(html.escape(f"{alert.run} {alert.text}"), title=alert.kind)
        newest = alerts[0].time if alerts else ""
        return (gr.skip() if newest == seen else _alerts_html(alerts[:3])), newest


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
        keep.click(show_errors(self.keep), fields, told_html, api_name="set_alerts", preprocess=False)
        test.click(show_errors(self.test), webhook, told_html, api_visibility="private")
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
        self.app.watcher.rules = parse_rules(**kept)
        self.app.store.remember("alerts", kept)
        gr.Info("The rules are kept.")
        return self.listing()

    def test(self, webhook: str) -> str:
        """Sends an alert that says it is a test."""
        parse_rules(0, 0, "", webhook or "")
        if not webhook:
            raise UserError("give the webhook's address first.")
        alerter = Alerter()
        if not alerter.send(webhook.strip(), Alert("test", "", "A test of the webhook.")):
            raise UserError(alerter.webhook_errors[0])
        gr.Info("The webhook took it.")
        return self.listing()

    def listing(self) -> str:
        """All alerts that were told since the start, and trouble with the webhook."""
        trouble = "".join(f'<p class="alert">{html.escape(text)}</p>' for text in self.app.alerter.webhook_errors)
        return trouble + (_alerts_html(list(self.app.alerter.raised)) or '<p class="hint">Nothing was told yet.</p>')


def _alerts_html(alerts: list[Alert]) -> str:
    return "".join(
        f'<p class="alert"><b>{html.escape(a.kind)}</b> {html.escape(a.run)} {html.escape(a.text)} <i>{a.time}</i></p>'
        for a in alerts
    )
