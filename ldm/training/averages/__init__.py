"""Averages of the weights: exponential, power-function, and stored snapshots of them."""
