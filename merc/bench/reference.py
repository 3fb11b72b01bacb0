"""Both methods written plainly from their equations: the baseline of the benchmark and the oracle of the tests.

Dialogues are padded to boxes (B, L, …), relations are found entry by entry in Python loops, every pair of utterances
gets its relation vector, and nothing is shared or fused, as in the released code. Balancing is left out. Weights bear
the released names, see :mod:`merc.models.released`. Equations are those of AMB-DSGDN (arXiv:2603.10043).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.models.emotion_model import EmotionModel
from merc.models.released import METHODS
from merc.models.released_names import PROJECTIONS

FAR = -9e15  # score of a pair that no edge connects


@dataclass(frozen=True)
class Boxes:
    """A batch of B dialogues, padded with zeros to the longest, L.

    Attributes:
        features: modality → (B, L, D_m).
        speakers: (B, L) int64; ``speaker_slots`` in padding.
        labels: (B, L) int64.
        mask: (B, L) bool, True for utterances.
        inter: (B, L, L) int64, relations between different speakers; row: receiver, column: source.
        intra: (B, L, L) int64, relations within a speaker.
        full: (B, L, L) int64, both; made by the released code and never read.
    """

    features: Mapping[str, Tensor]
    speakers: Tensor
    labels: Tensor
    mask: Tensor
    inter: Tensor
    intra: Tensor
    full: Tensor

    @classmethod
    def of(cls, batch: ConversationBatch, window: int, speaker_slots: int) -> "Boxes":
        """Pad a batch and relate the utterances at most ``window`` apart."""
        lengths = list(batch.lengths)

        def pad(rows: Tensor, value: float = 0) -> Tensor:
            return pad_sequence(list(rows.split(lengths)), batch_first=True, padding_value=value)

        speakers = pad(batch.speakers, speaker_slots)
        return cls(
            {m: pad(x) for m, x in batch.features.items()},
            speakers,
            pad(batch.labels),
            pad(torch.ones_like(batch.labels)).bool(),
            *relations(speakers.tolist(), lengths, window),
        )


def relations(speakers: Sequence[Sequence[int]], lengths: Sequence[int], window: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inter-speaker, intra-speaker and full relation matrices (Eq. 7-8), entry by entry."""
    shape = (len(lengths), max(lengths), max(lengths))
    inter, intra, full = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    tables = [matrix.numpy() for matrix in (inter, intra, full)]
    for b, length in enumerate(lengths):
        for i in range(length):
            for j in range(max(0, i - window), min(length, i + window + 1)):
                same = speakers[b][i] == speakers[b][j]
                tables[0][b, i, j] = 1 if i == j else 0 if same else 4 if i < j else 5
                tables[1][b, i, j] = 1 if i == j else 0 if not same else 2 if i > j else 3
                tables[2][b, i, j] = 1 if i == j else (2 if same else 4) if i < j else (3 if same else 5)
    return inter, intra, full


class Reference(nn.Module):
    """A model on padded boxes; subclasses hold the equations of a method.

    Args:
        weights: released name → tensor, copied; names of one tensor stay tied.
        config: the plain resolved configuration of the product's model.
        info: the corpus.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: Mapping[str, Any], info: CorpusInfo) -> None:
        super().__init__()
        copies: dict[tuple[int, torch.Size], nn.Parameter] = {}
        for tensor in weights.values():
            copies.setdefault((tensor.data_ptr(), tensor.shape), nn.Parameter(tensor.detach().clone()))
        # Names of parameters may hold no dots.
        self.weights = nn.ParameterDict(
            {name.replace(".", "/"): copies[tensor.data_ptr(), tensor.shape] for name, tensor in weights.items()}
        )
        self.hyper = config["hyperparameters"]
        self.graph = config["graph"].get("text", config["graph"]["default"])
        self.detach = config["objective"]["detach_weight"]
        self.class_weights = _class_weights(config["objective"]["class_weights"], info)
        self.modalities = info.modalities

    def w(self, name: str) -> Tensor:
        return self.weights[name.replace(".", "/")]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w(f"{name}.weight"), self.w(f"{name}.bias"))

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w(f"{name}.weight"), self.w(f"{name}.bias"), eps)

    def dropout(self, x: Tensor, p: float | None = None) -> Tensor:
        return F.dropout(x, self.hyper["dropout"] if p is None else p, self.training)

    def speakers(self, boxes: Boxes) -> Tensor:
        """(B, L, D): the speaker's vector, 0 in padding."""
        table = self.w("speaker_embeddings.weight")
        return F.embedding(boxes.speakers, table, padding_idx=len(table) - 1)

    def gated(self, m: str, x_BLD: Tensor) -> Tensor:
        """σ(Wx + b) ⊙ x, where the method has a gate."""
        name = f"{m[0]}gate.gate.0"
        return (
            self.linear(name, x_BLD).sigmoid() * x_BLD if f"{name}.weight".replace(".", "/") in self.weights else x_BLD
        )

    def positions(self, x_BLD: Tensor) -> Tensor:
        """(L, D): sin(n / 10000^(2i/D)) on even, cos on odd channels (Eq. 2)."""
        table = torch.zeros(x_BLD.shape[1:])
        angles = torch.arange(len(table))[:, None] * rotations(table.shape[1])
        table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()
        return table

    def relation_vectors(self, name: str, adjacency_BLL: Tensor) -> Tensor:
        """(B, L, L, 10): the relation vector of every pair."""
        return F.embedding(adjacency_BLL, self.w(f"{name}.relation_embedding.weight"))

    def attend(self, scores_BLL: Tensor, adjacency_BLL: Tensor) -> Tensor:
        """Softmax of LeakyReLU(scores) over the sources that an edge connects (Eq. 10-12)."""
        return F.leaky_relu(scores_BLL, 0.2).masked_fill(adjacency_BLL == 0, FAR).softmax(-1)

    def losses(self, logits: Mapping[str, Tensor], boxes: Boxes) -> dict[str, Tensor]:
        """Scalar ``fused``, one per modality, ``total`` = L_fused + Σ L_m²/10 (Eq. 31-33)."""
        losses = {name: self._loss(x_BLC, boxes) for name, x_BLC in logits.items()}
        squares = [(loss.detach() if self.detach else loss) * loss / 10 for m, loss in losses.items() if m != "fused"]
        return {**losses, "total": losses["fused"] + torch.stack(squares).sum()}

    def _loss(self, logits_BLC: Tensor, boxes: Boxes) -> Tensor:
        nll_BL = -logits_BLC.log_softmax(-1).gather(-1, boxes.labels[..., None]).squeeze(-1)
        weight_BL = boxes.mask * (1.0 if self.class_weights is None else self.class_weights[boxes.labels])
        return (weight_BL * nll_BL).sum() / weight_BL.sum()


class AmbDsgdn(Reference):
    """AMB-DSGDN, as released, and as published where the configuration says so."""

    def forward(self, boxes: Boxes) -> dict[str, Tensor]:
        """Padded dialogues → modality and ``fused`` → (B, L, C) logits."""
        speaker_BLD = self.speakers(boxes)
        logits: dict[str, Tensor] = {}
        for m in self.modalities:
            x_BLD = self.linear(PROJECTIONS[m], boxes.features[m])
            if m != "text":
                x_BLD = self.encode(m, x_BLD, speaker_BLD, boxes.mask)
            x_BLD = self.rgcn(f"gat{m[0].upper()}er", x_BLD, boxes.inter)
            x_BLD = self.rgcn(f"gat{m[0].upper()}", x_BLD, boxes.intra)
            logits[m] = self.linear(f"{m[0]}_output_layer.2", self.dropout(self.gated(m, x_BLD).relu()))
        return {**logits, "fused": torch.stack(list(logits.values())).sum(0)}

    def encode(self, m: str, x_BLD: Tensor, speaker_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """The Transformer layer of a modality (Eq. 2-6)."""
        name = f"{m[0]}_{m[0]}.transformer_inter.0"
        x_BLD = self.dropout(x_BLD + self.positions(x_BLD) + speaker_BLD)
        x_BLD = x_BLD + self.dropout(self.attention(f"{name}.self_attn", x_BLD, mask_BL))
        hidden_BLD = self.linear(f"{name}.feed_forward.w_1", self.norm(f"{name}.feed_forward.layer_norm", x_BLD, 1e-6))
        hidden_BLD = self.dropout(F.gelu(hidden_BLD, approximate="tanh"))
        return x_BLD + self.dropout(self.linear(f"{name}.feed_forward.w_2", hidden_BLD))

    def attention(self, name: str, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """softmax(Q Kᵀ/√d) V of every head (Eq. 4)."""
        heads = (self.hyper["heads"], -1)
        q, k, v = (self.linear(f"{name}.linear_{p}", x_BLD).unflatten(-1, heads).transpose(1, 2) for p in "qkv")
        scores_BHLL = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        map_BHLL = self.dropout(scores_BHLL.masked_fill(~mask_BL[:, None, None], -1e10).softmax(-1))
        return self.linear(f"{name}.linear", (map_BHLL @ v).transpose(1, 2).flatten(2))

    def rgcn(self, name: str, x_BLD: Tensor, adjacency_BLL: Tensor) -> Tensor:
        """The differential relational graph convolution of one subgraph (Sec. 4.5)."""
        p = self.graph["dropout"]
        dropped_BLD = self.dropout(x_BLD, p)
        heads = [
            self.differential(f"{name}.attention_{k}", dropped_BLD, adjacency_BLL, 1)
            for k in range(self.graph["heads"])
        ]
        h_BLH = self.dropout(torch.cat(heads, -1), p)
        out_BLD = F.gelu(self.differential(f"{name}.out_att", h_BLH, adjacency_BLL, self.graph["output_depth"]))
        return self.norm(f"{name}.layer_norm", self.linear(f"{name}.fc", out_BLD) + x_BLD)

    def differential(self, name: str, h_BLI: Tensor, adjacency_BLL: Tensor, depth: int) -> Tensor:
        """A⁺ − λ·A⁻ over the two halves of the channels (Eq. 9-17)."""
        z_BLD = h_BLI @ self.w(f"{name}.W")
        initial = 0.8 - 0.6 * math.exp(-0.3 * depth)
        maps, exponents = [], []
        for i, (half, sign) in enumerate(zip(z_BLD.chunk(2, -1), ("pos", "neg"), strict=True), start=1):
            left_BL1 = F.linear(half, self.w(f"{name}.a_left_{sign}.weight"))
            right_BL1 = F.linear(half, self.w(f"{name}.a_right_{sign}.weight"))
            relation_BLL1 = F.linear(self.relation_vectors(name, adjacency_BLL), self.w(f"{name}.a_rel_{sign}.weight"))
            maps.append(self.attend(left_BL1 + right_BL1.transpose(1, 2) + relation_BLL1.squeeze(-1), adjacency_BLL))
            exponents.append((self.w(f"{name}.lambda_left{i}") * self.w(f"{name}.lambda_right{i}")).sum().exp())
        coefficient = exponents[0] - exponents[1] + initial
        map_BLL = self.dropout(maps[0] - coefficient * maps[1], self.graph["dropout"])
        return F.gelu((1 - initial) * self.norm(f"{name}.layer_norm", map_BLL @ z_BLD))


class ReDiFu(Reference):
    """ReDiFu as released; its predictions depend on padding."""

    def forward(self, boxes: Boxes) -> dict[str, Tensor]:
        """Padded dialogues → modality and ``fused`` → (B, L, C) logits."""
        speaker_BLD = self.speakers(boxes)
        x = {m: self.linear(PROJECTIONS[m], boxes.features[m]) for m in self.modalities}
        x["text"] = self.gat("gatT", self.gat("gatTer", x["text"], boxes.inter), boxes.intra)
        for m in (m for m in x if m != "text"):
            x[m] = self.gated(m, self.encode(f"{m[0]}_{m[0]}", x[m], speaker_BLD, boxes.mask))
        normed = {m: self.norm(f"mutual_former.norm_{m[0]}", x[m]) for m in x}
        activation = F.relu if self.hyper["activation"] == "relu" else F.leaky_relu
        logits = {}
        for m in x:
            fused_BLD = self.fuse(m[0], x[m], normed[m], [normed[o] for o in x if o != m])
            head_BLD = activation(fused_BLD + x[m] if self.hyper["output_residual"] else fused_BLD)
            logits[m] = self.linear(f"{m[0]}_output_layer.2", self.dropout(head_BLD))
        return {**logits, "fused": torch.stack([self.hyper["logit_weights"][m] * logits[m] for m in x]).sum(0)}

    def gat(self, name: str, x_BLD: Tensor, adjacency_BLL: Tensor) -> Tensor:
        """Relational graph attention over one subgraph."""
        p = self.graph["dropout"]
        dropped_BLD = self.dropout(x_BLD, p)
        heads = [
            self.relational(f"{name}.attentions.{k}", dropped_BLD, adjacency_BLL) for k in range(self.graph["heads"])
        ]
        out_BLD = self.relational(f"{name}.out_att", self.dropout(torch.cat(heads, -1), p), adjacency_BLL)
        return self.norm(f"{name}.layer_norm", self.linear(f"{name}.fc", out_BLD) + x_BLD)

    def relational(self, name: str, h_BLI: Tensor, adjacency_BLL: Tensor) -> Tensor:
        """GELU(LN(softmax(LeakyReLU(a₁·z_i + a₂·z_j + a_r·r_ij)) z))."""
        z_BLD = h_BLI @ self.w(f"{name}.W")
        dim = z_BLD.shape[-1]
        left, right, relation = self.w(f"{name}.a").split([dim, dim, 10])
        scores_BLL = z_BLD @ left + (z_BLD @ right).transpose(1, 2)
        scores_BLL = scores_BLL + (self.relation_vectors(name, adjacency_BLL) @ relation).squeeze(-1)
        map_BLL = self.dropout(self.attend(scores_BLL, adjacency_BLL), self.graph["dropout"])
        return F.gelu(self.norm(f"{name}.layer_norm", map_BLL @ z_BLD))

    def encode(self, name: str, x_BLD: Tensor, speaker_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """The differential Transformer of a modality."""
        rotary = self.hyper["positions"] == "rotary"
        positioned_BLD = self.rotate(x_BLD) if rotary else x_BLD + self.positions(x_BLD)
        y_BLD = self.dropout(positioned_BLD + speaker_BLD)
        delta_BLD = self.local_delta(f"{name}.delta_net", x_BLD)
        both_BLE = self.norm(f"{name}.context_gate.norm", torch.cat([y_BLD, delta_BLD], -1))
        hidden_BLD = self.linear(f"{name}.context_gate.w.0", both_BLE).tanh()
        gate_BL1 = self.linear(f"{name}.context_gate.w.2", hidden_BLD).sigmoid()
        z_BLD = self.norm(f"{name}.pre_norm", gate_BL1 * delta_BLD + (1 - gate_BL1) * y_BLD + y_BLD, 1e-6)
        layer = f"{name}.internal_transformer.0"
        z_BLD = self.norm(f"{layer}.norm1", z_BLD + self.difference(f"{layer}.self_attn", z_BLD, mask_BL), 1e-6)
        inner_BLD = self.norm(f"{layer}.feed_forward.layer_norm", z_BLD, 1e-6)
        inner_BLD = F.gelu(self.linear(f"{layer}.feed_forward.w_1", inner_BLD), approximate="tanh")
        inner_BLD = self.linear(f"{layer}.feed_forward.w_2", self.dropout(self.hyper["gelu_gain"] * inner_BLD))
        z_BLD = self.norm(f"{layer}.norm2", 2 * z_BLD + self.dropout(inner_BLD), 1e-6)
        return y_BLD + self.hyper["output_weight"] * z_BLD

    def rotate(self, x_BLD: Tensor) -> Tensor:
        """Rotary positions on the features themselves."""
        angles = torch.arange(x_BLD.shape[1])[:, None] * rotations(x_BLD.shape[-1])
        even, odd = x_BLD[..., 0::2], x_BLD[..., 1::2]
        out_BLD = torch.empty_like(x_BLD)
        out_BLD[..., 0::2] = even * angles.cos() - odd * angles.sin()
        out_BLD[..., 1::2] = even * angles.sin() + odd * angles.cos()
        return out_BLD

    def local_delta(self, name: str, x_BLD: Tensor) -> Tensor:
        """x + α · σ(Wx) ⊙ LN(depthwise convolution over time)."""
        weight, bias = self.w(f"{name}.conv.weight"), self.w(f"{name}.conv.bias")
        local_BLD = F.conv1d(x_BLD.transpose(1, 2), weight, bias, padding=1, groups=len(weight)).transpose(1, 2)
        gate_BLD = self.linear(f"{name}.gate.0", x_BLD).sigmoid()
        return x_BLD + self.w(f"{name}.alpha") * gate_BLD * self.norm(f"{name}.norm", local_BLD)

    def difference(self, name: str, z_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attention minus attention to the keys one utterance earlier, the last one before the first."""
        heads = (self.hyper["heads"], -1)
        q, k, v = (x.unflatten(-1, heads).transpose(1, 2) for x in self.linear(f"{name}.qkv", z_BLD).chunk(3, -1))
        maps = []
        for keys in (k, k.roll(1, dims=2)):
            scores_BHLL = (q @ keys.transpose(-1, -2)) / math.sqrt(z_BLD.shape[-1])
            maps.append(scores_BHLL.masked_fill(~mask_BL[:, None, None], -1e9).softmax(-1))
        mixed_BHLD = self.w(f"{name}.lambda_") * self.dropout(maps[0] - maps[1]) @ v
        return self.linear(f"{name}.out", mixed_BHLD.transpose(1, 2).flatten(2))

    def fuse(self, m: str, x_BLD: Tensor, normed_BLD: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Attention to the other modalities, padding included, a gate, four linear layers."""
        taken_BLD = torch.stack([self.cross(f"mutual_former.attn_{m}", normed_BLD, other) for other in others]).sum(0)
        gate_BLD = self.linear(f"mutual_former.gate_{m}.gate.0", torch.cat([x_BLD, taken_BLD], -1)).sigmoid()
        f = gate_BLD * x_BLD + (1 - gate_BLD) * taken_BLD
        for layer in (0, 3, 6):
            f = self.dropout(F.gelu(self.linear(f"mutual_former.mlp_{m}.layers.{layer}", f)))
        return x_BLD + self.dropout(self.linear(f"mutual_former.mlp_{m}.layers.9", f))

    def cross(self, name: str, x_BLD: Tensor, other_BLD: Tensor) -> Tensor:
        """Multi-head attention from one modality to another."""
        heads = (self.hyper["fusion_heads"], -1)
        maps = zip(self.w(f"{name}.qkv.weight").chunk(3), (x_BLD, other_BLD, other_BLD), strict=True)
        q, k, v = (F.linear(x, weight).unflatten(-1, heads).transpose(1, 2) for weight, x in maps)
        map_BHLL = self.dropout(((q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(-1))
        return self.dropout(self.linear(f"{name}.proj", (map_BHLL @ v).transpose(1, 2).flatten(2)))


REFERENCES: Mapping[str, type[Reference]] = {
    "amb_dsgdn": AmbDsgdn,
    "amb_dsgdn_released": AmbDsgdn,
    "redifu_released": ReDiFu,
}
"""Choice of ``model=…`` → the plain model of the same equations."""


def rotations(dim: int) -> Tensor:
    """(dim/2,) radians per position: 10000^(−2i/dim)."""
    return 1 / 10000 ** (torch.arange(0, dim, 2) / dim)


def reference_of(name: str, model: EmotionModel, config: Mapping[str, Any], info: CorpusInfo) -> Reference:
    """The plain model with a copy of the weights of the product's.

    Args:
        name: a key of :data:`REFERENCES`.
        model: built with ``model=<name>``.
        config: its plain resolved configuration.
        info: the corpus.
    """
    return REFERENCES[name](weights_of(name, model), config, info)


def weights_of(name: str, model: EmotionModel, gradients: bool = False) -> dict[str, Tensor]:
    """Released name → the tensor of the product's model, or its gradient (zeros where there is none)."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    # The names of the released model include gates, which the published one goes without.
    gates = {f"gate.branches.{m}.linear.{kind}" for m in model.projection.branches for kind in ("weight", "bias")}
    absent = {gate: torch.empty(0) for gate in gates - tensors.keys()}
    if gradients:
        tensors = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in tensors.items()}
    views = METHODS[name.removesuffix("_released")]({**tensors, **absent}, tuple(model.projection.branches))
    return {released: view for released, view in views if view.numel()}


def _class_weights(given: Any, info: CorpusInfo) -> Tensor | None:
    """(C,) N/n_c, or as given (Eq. 31)."""
    if given == "none":
        return None
    counts = torch.tensor(info.class_counts)
    return counts.sum() / counts if given == "inverse_frequency" else torch.tensor(given)
