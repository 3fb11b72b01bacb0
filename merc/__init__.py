"""Experiment framework for multimodal emotion recognition in conversation (MERC)."""

import os

__version__ = "0.1.0"

# Read when torch loads. Its threads wait for each other thousands of times a step. Left alone they spin for as long as
# it takes, which makes everything ten times slower as soon as something else needs a core; told to sleep at once, they
# lose a third of a step to being woken. A thousand turns are a few microseconds: enough for the next operator.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# oneDNN keeps compiled kernels for the last 1,024 shapes, several hundred KiB each. Batches of dialogues hardly ever
# come in the same shape twice in an epoch; what a step needs repeatedly is far less.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
