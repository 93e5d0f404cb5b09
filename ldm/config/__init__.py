"""From a command line to a checked plain dict: composing with Hydra, overrides, help."""
