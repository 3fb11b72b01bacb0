"""The Hydra configuration of merc, installed as a package so that a wheel carries it."""
