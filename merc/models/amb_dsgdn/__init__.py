"""What is particular to AMB-DSGDN: the names of its released checkpoints. Its parts are stages like any other."""
