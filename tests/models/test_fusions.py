"""Fusions to one vector against loops over utterances, channels and ranks."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models.fusions import ConcatFusion, GatedFusion, LowRankFusion, ModalityAttention

MODALITIES = ("text", "audio", "visual")
Make = Callable[..., ConversationBatch]


@pytest.fixture
def rows() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {modality: torch.randn(14, 4) for modality in reversed(MODALITIES)}


def dot(left: Tensor, right: Tensor) -> float:
    return sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))


def fused(fusion: nn.Module, rows: dict[str, Tensor], batch: ConversationBatch) -> Tensor:
    result = fusion(rows, batch)
    assert set(result) == {"fused"}
    return result["fused"]


def test_concat_equals_loops(rows: dict[str, Tensor], make_batch: Make) -> None:
    fusion = ConcatFusion(MODALITIES, 4)
    ours = fused(fusion, rows, make_batch())
    for n in range(14):
        joined = torch.cat([rows[m][n] for m in MODALITIES])
        for c in range(4):
            expected = max(0.0, dot(fusion.linear.weight[c], joined) + fusion.linear.bias[c].item())
            assert ours[n, c].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_gates_equal_loops(rows: dict[str, Tensor], make_batch: Make, gate: str) -> None:
    fusion = GatedFusion(MODALITIES, 4, gate)
    ours = fused(fusion, rows, make_batch())
    for n in range(14):
        joined = torch.cat([rows[m][n] for m in MODALITIES])
        for c in range(4):
            logits = [dot(fusion.gates.weight[4 * i + c], joined) for i in range(3)]
            encoded = [math.tanh(dot(fusion.encoders[i].weight[c], rows[m][n])) for i, m in enumerate(MODALITIES)]
            total = sum(map(math.exp, logits)) if gate == "softmax" else None
            gates = [math.exp(z) / total if total else 1 / (1 + math.exp(-z)) for z in logits]
            expected = sum(g * h for g, h in zip(gates, encoded, strict=True))
            assert ours[n, c].item() == pytest.approx(expected, abs=1e-5)


def test_softmax_gates_of_two_modalities_are_the_bimodal_unit(rows: dict[str, Tensor], make_batch: Make) -> None:
    fusion = GatedFusion(("text", "audio"), 4, "softmax")
    joined = torch.cat([rows["text"], rows["audio"]], dim=1)
    first, second = fusion.gates.weight.chunk(2)
    z = (joined @ (first - second).T).sigmoid()
    text, audio = (encode(rows[m]).tanh() for encode, m in zip(fusion.encoders, ("text", "audio"), strict=True))
    torch.testing.assert_close(fused(fusion, rows, make_batch()), z * text + (1 - z) * audio)


def test_low_rank_fusion_equals_the_outer_product_through_its_weight_tensor(
    rows: dict[str, Tensor], make_batch: Make
) -> None:
    fusion = LowRankFusion(MODALITIES, 4, rank=2)
    nn.init.normal_(fusion.bias)
    # w_m^(r): (rank, channel, 5), the last column being the factor of the appended 1.
    factors = [torch.cat([linear.weight.view(2, 4, 4), linear.bias.view(2, 4, 1)], dim=-1) for linear in fusion.factors]
    weight_CIJK = torch.einsum("rci,rcj,rck->cijk", *factors)
    extended = [torch.cat([rows[m], torch.ones(14, 1)], dim=1) for m in MODALITIES]
    outer_NIJK = torch.einsum("ni,nj,nk->nijk", *extended)
    expected = torch.einsum("cijk,nijk->nc", weight_CIJK, outer_NIJK) + fusion.bias
    torch.testing.assert_close(fused(fusion, rows, make_batch()), expected, atol=1e-5, rtol=1e-4)


def test_modality_attention_equals_loops(rows: dict[str, Tensor], make_batch: Make) -> None:
    fusion = ModalityAttention(MODALITIES, 4, heads=2, dropout=0.0)
    ours = fusion(rows, make_batch())
    attention = fusion.attention
    for n in range(14):
        x_MD = torch.stack([rows[m][n] for m in MODALITIES])
        query, key, value = (x_MD @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
        for i, modality in enumerate(MODALITIES):
            heads = []
            for head in (slice(0, 2), slice(2, 4)):
                weights = torch.stack([query[i, head] @ key[j, head] / math.sqrt(2) for j in range(3)]).softmax(0)
                heads.append(sum(weights[j] * value[j, head] for j in range(3)))
            expected = fusion.norm(x_MD[i] + attention.out_proj(torch.cat(heads)))
            torch.testing.assert_close(ours[modality][n], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GatedFusion(MODALITIES, 4, "hard"), "gate=hard must be sigmoid or softmax"),
        (lambda: LowRankFusion(MODALITIES, 4, 0), "rank=0"),
        (lambda: ModalityAttention(MODALITIES, 4, 3, 0.0), "heads=3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(MercError, match=message):
        make()
