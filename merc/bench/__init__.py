"""How fast the product is, beside the least that any implementation must do and beside a plain one."""
