"""The trained model as its user sees it: load it, generate, edit, interpolate, and save."""
