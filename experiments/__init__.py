"""The experiments of merc, installed as a package so that a wheel carries them."""
