"""diffusers' scheduler configs and our parameterizations with their sampling defaults, converted in both directions."""

from ldm.interop.schedulers.reading import from_diffusers, substituted_solver
from ldm.interop.schedulers.writing import to_diffusers

__all__ = ["from_diffusers", "substituted_solver", "to_diffusers"]
