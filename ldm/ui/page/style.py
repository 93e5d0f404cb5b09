"""The style of the page, and its script."""

from typing import Any

CSS = """
.gradio-container { max-width: 1500px !important; }
.hint, .hint p { color: var(--body-text-color-subdued); font-size: .9em; margin: 2px 0; }
#images img, #all-images img, #grids img, #sheet img { image-rendering: pixelated; }
#images .grid-wrap, #all-images .grid-wrap { max-height: none; overflow: hidden; }
#tokens:not(:has(p)) { display: none; }
#tokens { background: var(--block-background-fill); padding: 0 14px !important; }
#images .grid-container { width: min(100%, max(300px, 100vh - 250px)); margin: auto; }
.ldm-bar { position: relative; min-height: 30px; border-radius: 6px; overflow: hidden;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary); }
.ldm-bar div { position: absolute; height: 100%; background: var(--color-accent); opacity: .35; transition: width .2s; }
.ldm-bar.done div { background: #16a34a; }
.ldm-bar.stopped div { background: #dc2626; }
.ldm-bar span { display: block; position: relative; padding: 4px 10px; font-size: .9em; }
.alert { border-left: 4px solid #dc2626; padding: 4px 10px; margin: 2px 0; background: var(--block-background-fill); }
.alert i { color: var(--body-text-color-subdued); font-size: .85em; }
.figures td { padding: 2px 14px 2px 0; }
.log textarea { font-family: ui-monospace, monospace; font-size: .8em; }
#alerts:not(:has(p)) { display: none; }
#title { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.dark { --color-accent: var(--primary-400); }
@media (max-width: 799px) { #ask { gap: 8px; } }
@media (min-width: 800px) {  /* else one below the other: prompt, results, settings */
  #work { display: grid; grid-template: auto 1fr / 5fr 6fr; align-items: start; }
  #results { grid-area: 1 / 2 / span 2; }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""

# Screen readers announce the status.
LIVE = "() => document.querySelector('#status').setAttribute('role', 'status')"

# gradio reads its image editor at every event, even of timers, and uploads its images each time. This script doesn't
# upload the same bytes again for ten minutes, but gives the answer that they got. Ctrl+Enter generates.
HEAD = """<script>
new MutationObserver(() => {  // gradio labels its empty fields, which screen readers only read of what has a role
  for (const one of document.querySelectorAll(".empty[aria-label]:not([role])")) one.setAttribute("role", "img");
}).observe(document, { subtree: true, childList: true });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const shown = [...document.querySelectorAll("#generate, #generate-grid")].find((button) => button.offsetParent);
  if (shown) { event.preventDefault(); shown.click(); }
});
(() => {
  const send = window.fetch.bind(window), sent = [], WHILE = 600000, MOST = 8;
  const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);
  window.fetch = async (address, options) => {
    const files = options?.body instanceof FormData ? [...options.body.values()] : [];
    const plain = new URL(address?.url ?? address, location).href.endsWith("/gradio_api/upload");
    if (!plain || files.length !== 1 || !(files[0] instanceof File)) return send(address, options);
    const bytes = new Uint8Array(await files[0].arrayBuffer()), name = files[0].name, now = Date.now();
    const known = sent.find((one) => now - one.now < WHILE && one.name === name && same(one.bytes, bytes));
    if (known) return known.answer.clone();
    const answer = await send(address, options);
    if (answer.ok) sent.unshift({ bytes, name, now, answer: answer.clone() });
    sent.length = Math.min(sent.length, MOST);
    return answer;
  };
})();
</script>"""


def theme(gradio: Any) -> Any:
    """The theme, with system fonts alone: the page requests nothing from other servers."""
    fonts = ["system-ui", "sans-serif"]
    base = gradio.themes.Default(
        font=fonts, font_mono=["ui-monospace", "monospace"], primary_hue="indigo", radius_size="sm"
    )
    return base.set(  # contrasts of at least 4.5:1, and check boxes that are seen on dark ground
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_cancel_background_fill="#dc2626",
        button_cancel_background_fill_hover="#b91c1c",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
    )
