"""Sweeps: many runs from one command, by way of experiments."""
