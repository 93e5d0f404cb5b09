"""Scores of a trained run: the verdict on stage one, the distances of stage two, and their report."""
