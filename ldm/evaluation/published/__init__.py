"""Scores by the protocols of papers: FID, sFID, FD on DINOv2, CLIP score, of many images read one batch at a time."""
