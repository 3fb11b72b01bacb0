"""From source files to batches of conversations."""
