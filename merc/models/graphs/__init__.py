"""Graphs: utterances exchange information along the relations of a dialogue."""

from merc.models.graphs.cross_modal import CrossModalGraph
from merc.models.graphs.differential import DiffRGCN
from merc.models.graphs.encoder import SpeakerGraphs
from merc.models.graphs.gcn import GCN
from merc.models.graphs.relational_gat import RelationalGAT

__all__ = ["GCN", "CrossModalGraph", "DiffRGCN", "RelationalGAT", "SpeakerGraphs"]
