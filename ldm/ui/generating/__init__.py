"""From settings to images on the page: the form, the queue, loaded models, and what is stored."""
