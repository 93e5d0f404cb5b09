"""The run folder: its lock, checkpoints, resuming, signals and guards."""
