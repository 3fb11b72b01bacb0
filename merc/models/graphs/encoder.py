"""The graph stage: every modality through its own layers over shared relation graphs."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.errors import MercError, nearest
from merc.models.graphs.neighbourhood import SUBGRAPHS, RelationGraph, relation_graphs
from merc.models.graphs.relational import RelationalScores
from merc.models.stages import PerModality, Rows


class GraphBranch(nn.Module):
    """The layers of one modality, each over its subgraph, in order (AMB-DSGDN Sec. 4.4: inter- before intra-speaker).

    Args:
        layers: subgraph name → layers, one per round through the subgraphs, called with rows and the subgraph.
    """

    def __init__(self, layers: Mapping[str, Sequence[nn.Module]]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({subgraph: nn.ModuleList(stack) for subgraph, stack in layers.items()})

    def forward(self, x_ND: Tensor, graphs: Mapping[str, RelationGraph]) -> Tensor:
        """(N, D) → (N, D)."""
        stacks = cast(Mapping[str, nn.ModuleList], self.layers)
        for layers in zip(*stacks.values(), strict=True):
            for subgraph, layer in zip(stacks, layers, strict=True):
                x_ND = layer(x_ND, graphs[subgraph])
        return x_ND


class SpeakerGraphs(nn.Module):
    """Inter- and intra-speaker graphs of each modality (AMB-DSGDN Sec. 4.3-4.5).

    Args:
        layers: modality → subgraph (``inter_speaker``, ``intra_speaker``) → layers; modalities may be left out.
        past: utterances before that an utterance receives from.
        future: utterances after; none of a causal batch.
        self_loops: connect an utterance with itself.
        share_relations: one relation table for all relational layers, as ReDiFu has it; else one per layer.
        cross_modal: edges between modalities, behind the others; called with all rows and the batch. None: no edges.

    Raises:
        MercError: an unknown subgraph or a negative window.
    """

    def __init__(
        self,
        layers: Mapping[str, Mapping[str, Sequence[nn.Module]]],
        past: int,
        future: int,
        self_loops: bool = True,
        share_relations: bool = False,
        cross_modal: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name in {subgraph for branch in layers.values() for subgraph in branch}:
            if name not in SUBGRAPHS:
                raise MercError(
                    f"graph.subgraphs names '{name}'; there are {', '.join(SUBGRAPHS)}.{nearest(name, SUBGRAPHS)}"
                )
        if past < 0 or future < 0:
            raise MercError(f"graph.past={past} and graph.future={future} must not be negative.")
        self.past = past
        self.future = future
        self.self_loops = self_loops
        self.branches = PerModality({m: GraphBranch(branch) for m, branch in layers.items()})
        self.cross_modal = cross_modal
        if share_relations:
            self._share_relations()

    def _share_relations(self) -> None:
        scores = [m for m in self.modules() if isinstance(m, RelationalScores) and m.relation_table is not None]
        if len({cast(nn.Parameter, module.relation_table).shape for module in scores}) > 1:
            raise MercError(
                "graph.share_relations=true needs layers with relation tables of one shape; these layers differ. "
                "Set it to false, or choose one kind of layer."
            )
        for module in scores:
            module.relation_table = scores[0].relation_table

    def forward(self, rows: Rows, batch: ConversationBatch) -> dict[str, Tensor]:
        """Modality → (N, D), to the same."""
        if self.branches.branches:
            rows = self.branches(rows, relation_graphs(batch, self.past, self.future, self.self_loops))
        return dict(rows) if self.cross_modal is None else self.cross_modal(rows, batch)
