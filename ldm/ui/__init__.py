"""The web page of `app.py`: gradio is used in `page` and `server` alone, which show and serve the other parts."""
