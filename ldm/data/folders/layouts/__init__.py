"""Layouts that mean more than classes: tile pyramids, and series of slices or frames that belong together."""
