"""One kind of fine-tuning per file, and the run and task that they share."""
