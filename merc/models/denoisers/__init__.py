"""Denoisers: from the projected rows of one modality to rows that know their dialogue."""

from merc.models.denoisers.differential import DifferentialDenoiser
from merc.models.denoisers.transformer import TransformerDenoiser

__all__ = ["DifferentialDenoiser", "TransformerDenoiser"]
