"""Denoisers: from the projected rows of one modality to rows that know their dialogue."""

from merc.models.denoisers.diff_transformer import DiffTransformerDenoiser
from merc.models.denoisers.differential import DifferentialDenoiser
from merc.models.denoisers.recurrent import RecurrentDenoiser
from merc.models.denoisers.transformer import TransformerDenoiser

__all__ = ["DiffTransformerDenoiser", "DifferentialDenoiser", "RecurrentDenoiser", "TransformerDenoiser"]
