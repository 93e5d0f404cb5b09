"""Captions: in files beside images, and inside image files."""
