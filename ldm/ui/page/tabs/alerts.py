"""Alerts: the banner above all tabs, and the tab with their rules."""

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
    """The latest alerts above all tabs; new ones also as messages."""

    def __init__(self, app: App):
        self.app = app
        self.html = gr.HTML("", elem_id="alerts")
        self.seen = gr.State(None)
        gr.Timer(LOOK_SECONDS).tick(self.look, self.seen, [self.html, self.seen], **quiet_event(self.html))

    def look(self, seen: str | None) -> tuple[Any, Any]:
        """The banner, if it has changed, and the time of the latest alert; `seen` is that of the last look."""
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
            "Alerts are shown on every tab and sent to the webhook: for a loss that isn't finite, a run that fails, "
            "and the rules below. Zero turns a rule off.",
            elem_classes="hint",
        )
        with gr.Row():
            rules = app.watcher.rules
            stall = gr.Number(rules.stall_minutes, label="Alert if no step for (minutes)", minimum=0)
            disk = gr.Number(rules.disk_gb, label="Alert if free disk space is below (GB)", minimum=0)
        thresholds = gr.Textbox(label="Thresholds, one per line", lines=3, placeholder="val/loss > 2")
        webhook = gr.Textbox(
            label="Webhook (each alert is posted to it as JSON)", placeholder="https://...", type="password"
        )
        with gr.Row():
            keep = gr.Button("Save", variant="primary")
            test = gr.Button("Send a test alert")
        alerts_html = gr.HTML()
        fields = [stall, disk, thresholds, webhook]
        keep.click(show_errors(self.keep), fields, alerts_html, api_name="set_alerts", preprocess=False)
        test.click(show_errors(self.test), webhook, alerts_html, api_visibility="private")
        self.outputs = [*fields, alerts_html]

    def look(self) -> list[Any]:
        """The current rules and the alerts that were raised."""
        rules = self.app.watcher.rules
        thresholds = "\n".join(map(str, rules.thresholds))
        return [rules.stall_minutes, rules.disk_gb, thresholds, rules.webhook, self.listing()]

    def keep(self, stall_minutes: float, disk_gb: float, thresholds: str, webhook: str) -> str:
        """Sets the rules and stores them for the next start."""
        numbers = {"stall_minutes": stall_minutes or 0, "disk_gb": disk_gb or 0}
        texts = {"thresholds": thresholds or "", "webhook": webhook or ""}
        for kind, values in ((float, numbers), (str, texts)):
            for what, value in values.items():
                annotations.check_value(value, kind, what)
        kept: dict[str, Any] = numbers | texts
        self.app.watcher.rules = parse_rules(**kept)
        self.app.store.remember("alerts", kept)
        gr.Info("The rules are saved.")
        return self.listing()

    def test(self, webhook: str) -> str:
        """Sends a test alert to the webhook."""
        parse_rules(0, 0, "", webhook or "")
        if not webhook:
            raise UserError("the webhook is empty: give its address first.")
        alerter = Alerter()
        if not alerter.send(webhook.strip(), Alert("test", "", "This is a test of the webhook.")):
            raise UserError(alerter.webhook_errors[0])
        gr.Info("The webhook accepted the alert.")
        return self.listing()

    def listing(self) -> str:
        """All alerts since the start, as HTML, below the errors of the webhook."""
        errors = "".join(f'<p class="alert">{html.escape(text)}</p>' for text in self.app.alerter.webhook_errors)
        return errors + (_alerts_html(list(self.app.alerter.raised)) or '<p class="hint">No alerts yet.</p>')


def _alerts_html(alerts: list[Alert]) -> str:
    return "".join(
        f'<p class="alert"><b>{html.escape(a.kind)}</b> {html.escape(a.run)} {html.escape(a.text)} <i>{a.time}</i></p>'
        for a in alerts
    )
