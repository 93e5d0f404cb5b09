"""What the page shows, in gradio: its tabs, fields, messages and style."""
