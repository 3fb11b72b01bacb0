"""The model, stage by stage, and how it is trained."""
