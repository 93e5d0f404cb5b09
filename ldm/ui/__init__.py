"""The web page of `app.py`. Logic without gradio in modules of its own; `page*` lay it out, `serve` starts it."""
