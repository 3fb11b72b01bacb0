"""Experiment framework for multimodal emotion recognition in conversation (MERC)."""

from merc import startup

__version__ = "0.1.0"

startup.choose()
