"""From a command line to a checked plain dict: overrides, composing with Hydra, checks of options, help."""
