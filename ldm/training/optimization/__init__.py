"""Optimizers, learning rates and gradients."""
