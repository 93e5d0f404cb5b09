"""The web page of `app.py`. Only `page` and `server` use gradio; they show and serve the other parts."""
