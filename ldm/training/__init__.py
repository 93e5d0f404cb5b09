"""Stage one and stage two: their tasks, losses and runs."""
