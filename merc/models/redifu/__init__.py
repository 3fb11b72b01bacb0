"""What is particular to ReDiFu: the names of its released checkpoints. Its parts are stages like any other."""
