"""One kind of fine-tuning a file, and the run and task that they share."""
