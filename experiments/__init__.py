"""The experiments: one file for each table or figure of a paper, with the published values beside it."""
