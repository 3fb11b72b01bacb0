"""Experiment framework for multimodal emotion recognition in conversation (MERC)."""

__version__ = "0.1.0"
