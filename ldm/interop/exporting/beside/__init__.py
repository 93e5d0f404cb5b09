"""Classes for what diffusers has no class for; the export writes them, self-contained, beside the weights."""
