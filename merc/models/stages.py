"""How one module per modality becomes a stage of the model.

A stage maps ``{modality: (N, D) rows}`` to ``{modality: (N, D) rows}``. Most of them treat the modalities alike, each
with its own weights: their classes are written for one modality and wrapped here.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from merc.errors import MercError

Rows = Mapping[str, Tensor]

FUSED = "fused"
"""Name of the one set of rows behind a fusion that makes one vector of all modalities."""


def head_width(hidden_dim: int, heads: int) -> int:
    """Width of each attention head.

    Raises:
        MercError: ``heads`` does not divide ``hidden_dim``.
    """
    if hidden_dim % heads:
        raise MercError(f"hidden_dim={hidden_dim} cannot be split into heads={heads} equal attention heads.")
    return hidden_dim // heads


class PerModality(nn.Module):
    """One module for each modality that has one; the rows of the others pass unchanged.

    Args:
        branches: modality → module called with that modality's rows and the context.
    """

    def __init__(self, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)

    def forward(self, rows: Rows, *context: Any) -> dict[str, Tensor]:
        """Map the rows of each modality; ``context`` goes to every module as it is."""
        return {
            modality: self.branches[modality](x_ND, *context) if modality in self.branches else x_ND
            for modality, x_ND in rows.items()
        }
