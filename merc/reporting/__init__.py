"""What a run leaves behind and shows: run folder, history, predictions, tables, progress, loggers."""
