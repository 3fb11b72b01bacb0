"""Experiment framework for multimodal emotion recognition in conversation (MERC)."""

import os

__version__ = "0.1.0"

# Read when torch loads. By default its threads spin while they wait for each other, which makes the many small
# operations of these models ten times slower as soon as something else needs a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
