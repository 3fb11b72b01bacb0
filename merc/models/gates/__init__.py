"""Gates behind the graphs."""

from torch import Tensor, nn

from merc.models.linear import Linear


class SigmoidGate(nn.Module):
    """x ← σ(Wx + b) ⊙ x, as in the released AMB-DSGDN and ReDiFu.

    Args:
        hidden_dim: D.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_dim, hidden_dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) → (N, D)."""
        return self.linear(x_ND).sigmoid() * x_ND
