"""Tables, figures and one page from run folders: what an experiment shows. Nothing here imports torch."""
