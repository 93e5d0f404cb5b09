"""The whole page."""

import gradio as gr

from ldm.ui.app import App
from ldm.ui.page.alerts_tab import AlertsTab, Banner
from ldm.ui.page.checked_blocks import CheckedBlocks
from ldm.ui.page.gallery_tab import GalleryTab
from ldm.ui.page.generate_tab import GenerateTab
from ldm.ui.page.messages import show_errors
from ldm.ui.page.runs_tab import RunsTab
from ldm.ui.page.widgets import quiet_event
from ldm.ui.page.xy_tab import XYTab


def build_page(app: App) -> gr.Blocks:
    """The page over the parts of `app`; nothing is served yet."""
    with CheckedBlocks(title="ldm", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        Banner(app)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Draw", id="draw") as draw_tab:
                draw = GenerateTab(app)
            with gr.Tab("X/Y grid", id="xy") as xy_tab:
                XYTab(app, draw)
            with gr.Tab("Pictures", id="pictures") as pictures_tab:
                pictures = GalleryTab(app, draw, tabs)
            with gr.Tab("Runs", id="runs") as runs_tab:
                runs = RunsTab(app)
            with gr.Tab("Alerts", id="alerts") as alerts_tab:
                alerts = AlertsTab(app)
        quietly = quiet_event(draw.status)
        page.load(show_errors(draw.start), draw.kept, list(draw.fields.values()), **quietly)
        page.load(draw.look, None, [draw.fields["run"], *draw._choices()], **quietly)
        page.load(show_errors(runs.recall), runs.kept, runs.form, **quietly)
        pictures_tab.select(pictures.look, None, pictures.outputs, **quietly)
        alerts_tab.select(alerts.look, None, alerts.outputs, **quietly)
        for tab in (draw_tab, xy_tab, pictures_tab, alerts_tab, runs_tab):
            live = tab is runs_tab  # the page asks for the run's state only while it is looked at
            tab.select(_timer(live), None, runs.timer, **quietly)
        runs_tab.select(show_errors(runs.found), None, runs.run, **quietly)
    return page


def _timer(active: bool):
    return lambda: gr.Timer(active=active)
