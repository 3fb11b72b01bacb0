"""ReDiFu: sizes, the walk from the released to the described model, and its parts against their equations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from merc.config import compose, plain
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.errors import MercError
from merc.models.build import build_model
from merc.models.denoisers.differential import RotaryFeatures, ShiftedDifference
from merc.models.emotion_model import EmotionModel, count_parameters
from merc.models.fusions import GuidedDiffusion
from merc.models.fusions.cross_attention import CrossAttention
from merc.models.graphs import CrossModalGraph

WALK = [
    "model.pad_dialogues=false",
    "data.evaluation_batch_size=512",
    "graph=relational_cross_modal",
    "denoiser=diff_transformer",
    "fusion=text_guided_diffusion",
    "classifier=text_logits",
]
SMALL = ("hyperparameters.heads=4", "hyperparameters.fusion_heads=2")
IEMOCAP = ("model=redifu_released", "data=synthetic_iemocap", *SMALL)
MELD = ("model=redifu_released", "data=synthetic_meld", *SMALL)

Make = Callable[..., ConversationBatch]


@pytest.mark.parametrize("corpus", ["meld", "iemocap"])
def test_the_walk_leads_from_the_released_to_the_described_model(corpus: str) -> None:
    walked = plain(compose(["model=redifu_released", f"data={corpus}", *WALK]))
    assert walked == plain(compose(["model=redifu", f"data={corpus}"]))


@pytest.mark.parametrize(("corpus", "last"), [("iemocap", 1.10e-6), ("meld", 3.45e-5)])
def test_learning_rate_follows_the_published_schedule(corpus: str, last: float) -> None:
    config = plain(compose(["model=redifu_released", f"data={corpus}"]))
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=config["optimizer"]["lr"])
    settings = {key: value for key, value in config["scheduler"].items() if key != "_target_"}
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, **settings)
    for _ in range(config["trainer"]["max_epochs"] - 1):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(last, rel=5e-3)


@pytest.mark.parametrize("start", [IEMOCAP, MELD], ids=["iemocap", "meld"])
def test_only_the_released_model_depends_on_padding(
    make_model: Callable[..., EmotionModel], make_batch: Make, start: tuple[str, ...]
) -> None:
    alone = make_batch(lengths=(5,))
    beside = make_batch(lengths=(5, 30))
    together = ConversationBatch(
        features={m: torch.cat([x, beside.features[m][5:]]) for m, x in alone.features.items()},
        speakers=torch.cat([alone.speakers, beside.speakers[5:]]),
        labels=torch.cat([alone.labels, beside.labels[5:]]),
        lengths=(5, 30),
    )
    for steps in range(len(WALK) + 1):
        model = make_model(*start, *WALK[:steps]).eval()
        same = torch.allclose(model(together).fused[:5], model(alone).fused, atol=1e-5)
        assert same == (steps > 0), WALK[:steps]


@pytest.mark.parametrize("name", ["redifu", "redifu_released"])
@pytest.mark.parametrize("modalities", [("text",), ("text", "audio"), ("text", "audio", "visual")])
def test_trains_on_any_modalities_with_text(
    make_model: Callable[..., EmotionModel], make_batch: Make, name: str, modalities: tuple[str, ...]
) -> None:
    dims = {m: 3 + i for i, m in enumerate(modalities)}
    overrides = (f"model={name}", f"data.modalities=[{','.join(modalities)}]", *SMALL)
    prediction = make_model(*overrides, dims=dims).train()(make_batch(dims=dims))
    assert prediction.fused.isfinite().all()
    assert tuple(prediction.unimodal) == modalities


def test_guided_diffusion_needs_its_guide(make_model: Callable[..., EmotionModel]) -> None:
    with pytest.raises(MercError, match=r"guide=text is no modality"):
        make_model("model=redifu", "data.modalities=[audio,visual]", *SMALL, dims={"audio": 3, "visual": 2})


def test_rotation_keeps_lengths_and_relative_angles(make_batch: Make) -> None:
    batch = make_batch(lengths=(9,))
    rotary = RotaryFeatures(6)
    x_ND = torch.randn(1, 6).expand(9, 6)
    rotated = rotary(x_ND, batch)
    torch.testing.assert_close(rotated.norm(dim=1), x_ND.norm(dim=1))
    torch.testing.assert_close(rotated[0], x_ND[0])
    products = [(rotated[i] @ rotated[i + 3]).item() for i in range(6)]
    assert products == pytest.approx([products[0]] * 6, abs=1e-5)


def test_shifted_difference_equals_its_equation(make_batch: Make) -> None:
    torch.manual_seed(0)
    batch = make_batch(lengths=(4, 1, 6))
    layer = ShiftedDifference(8, heads=2, dropout=0.0, head_scale=False)
    x_ND = torch.randn(11, 8)
    query, key, value = layer.query_key_value(x_ND).chunk(3, dim=-1)
    rows, start = [], 0
    for length in batch.lengths:
        span = slice(start, start + length)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            keys = key[span, head]
            maps = [(query[span, head] @ k.T * 8**-0.5).softmax(-1) for k in (keys, keys.roll(1, dims=0))]
            torch.testing.assert_close((maps[0] - maps[1]).sum(-1), torch.zeros(length), atol=1e-6, rtol=0)
            heads.append(0.5 * (maps[0] - maps[1]) @ value[span, head])
        rows.append(torch.cat(heads, dim=-1))
        start += length
    torch.testing.assert_close(layer(x_ND, batch), layer.output(torch.cat(rows)), atol=1e-5, rtol=1e-4)


def test_cross_attention_equals_torch_within_each_dialogue(make_batch: Make) -> None:
    torch.manual_seed(0)
    batch = make_batch(lengths=(4, 6))
    layer = CrossAttention(8, heads=2, dropout=0.0)
    x_ND, other_ND = torch.randn(10, 8), torch.randn(10, 8)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": layer.query_key_value.weight,
            "in_proj_bias": torch.zeros(24),
            "out_proj.weight": layer.output.weight,
            "out_proj.bias": layer.output.bias,
        }
    )
    expected = [reference(x_ND[s], other_ND[s], other_ND[s])[0] for s in (slice(0, 4), slice(4, 10))]
    torch.testing.assert_close(layer(x_ND, other_ND, batch), torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_guided_diffusion_equals_the_product_of_affinities(make_batch: Make) -> None:
    torch.manual_seed(0)
    batch = make_batch(lengths=(5,))
    fusion = GuidedDiffusion(("text", "audio", "visual"), hidden_dim=8, heads=2, dropout=0.0).eval()
    rows = {m: torch.randn(5, 8) for m in ("text", "audio", "visual")}

    def affinity(m: str, head: slice) -> Tensor:
        query, key = fusion.affinities[m].query_key(rows[m]).chunk(2, dim=-1)
        return (query[:, head] @ key[:, head].T / 2).softmax(-1)

    expected = rows["text"]
    for m in ("audio", "visual"):
        values = fusion.values[m](rows[m])
        heads = [affinity("text", h) @ affinity(m, h) @ values[:, h] for h in (slice(0, 4), slice(4, 8))]
        diffused = torch.cat(heads, dim=-1)
        expected = expected + fusion.gates[m](torch.cat([rows["text"], diffused], dim=-1)).sigmoid() * diffused
    fused = fusion(rows, batch)
    torch.testing.assert_close(fused["text"], expected, atol=1e-5, rtol=1e-4)
    assert fused["audio"] is rows["audio"]


def test_cross_modal_edges_equal_loops(make_batch: Make) -> None:
    torch.manual_seed(0)
    batch = make_batch(lengths=(4, 1, 7))
    names = ("text", "audio", "visual")
    layer = CrossModalGraph(names, hidden_dim=6, dropout=0.0, past=2, future=1).eval()
    torch.nn.init.normal_(layer.direction)
    rows = {m: torch.randn(12, 6) for m in names}
    z = {m: layer.projections[m](rows[m]) for m in names}
    ours = layer(rows, batch)
    for i, m in enumerate(names):
        for row in range(12):
            scores, values = [], []
            for j, other in enumerate(names):
                for source in range(12):
                    distance = source - row
                    if other == m or batch.dialogues[source] != batch.dialogues[row] or not -2 <= distance <= 1:
                        continue
                    way = 0 if distance < 0 else 1 if distance == 0 else 2
                    score = (
                        layer.receiver[i] @ z[m][row] + layer.source[j] @ z[other][source] + layer.direction[i, j, way]
                    )
                    scores.append(F.leaky_relu(score, 0.2))
                    values.append(z[other][source])
            received = torch.stack(scores).softmax(0) @ torch.stack(values)
            mapped = F.linear(F.gelu(received), layer.outputs[m].weight, layer.outputs[m].bias)
            expected = F.layer_norm(rows[m][row] + mapped, mapped.shape, layer.norms[m].weight, layer.norms[m].bias)
            torch.testing.assert_close(ours[m][row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_cross_modal_edges_do_not_depend_on_precision_or_padding(make_batch: Make, padded: bool) -> None:
    """Operators compute in single precision, PyTorch in double; what utterances get and give is the same."""
    torch.manual_seed(0)
    names = ("text", "audio", "visual")
    plain = CrossModalGraph(names, hidden_dim=20, dropout=0.0, past=2, future=3).double()
    ours = CrossModalGraph(names, hidden_dim=20, dropout=0.0, past=2, future=3)
    ours.load_state_dict(plain.state_dict())
    batch = make_batch(lengths=(4, 1, 17))
    wide = batch.with_padding(speaker=3) if padded else batch
    there = slice(None) if wide.present is None else wide.present
    results = []
    for layer, given, chosen, dtype in ((plain, batch, slice(None), torch.float64), (ours, wide, there, torch.float32)):
        torch.manual_seed(1)
        utterances = {m: torch.randn(22, 20, dtype=torch.float64).to(dtype).requires_grad_() for m in names}
        rows = {m: torch.ones(given.rows, 20, dtype=dtype) for m in names}
        for m in names:
            rows[m][chosen] = utterances[m]
        out = torch.cat([x_ND[chosen] for x_ND in layer(rows, given).values()])
        weights = torch.randn(out.shape, dtype=torch.float64).to(dtype)
        parameters = [layer.receiver, layer.source, layer.direction]
        results.append([out, *torch.autograd.grad((out * weights).sum(), [*utterances.values(), *parameters])])
    for expected, x in zip(*results, strict=True):
        torch.testing.assert_close(x.double(), expected, atol=1e-4, rtol=1e-3)


def test_cross_modal_edges_respect_a_causal_graph(make_model: Callable[..., EmotionModel], make_batch: Make) -> None:
    model = make_model("denoiser=none", "graph.future=0", "graph/cross_modal=attention").eval()
    batch = make_batch(lengths=(12,))
    before = model(batch).fused
    for features in batch.features.values():
        features[8:] += 1.0
    torch.testing.assert_close(model(batch).fused[:8], before[:8])


def test_a_shared_relation_table_is_one_parameter(make_config: Callable[..., dict[str, Any]]) -> None:
    info = CorpusInfo({"text": 4, "audio": 3}, ("a", "b"), 2, (1, 1))
    counts = [
        count_parameters(build_model(make_config("graph=relational_gat", f"graph.share_relations={share}"), info))
        for share in (False, True)
    ]
    assert counts[0] - counts[1] == 7 * 60  # two modalities × two subgraphs × two layers, one table left


def test_layers_with_different_tables_cannot_share(make_model: Callable[..., EmotionModel]) -> None:
    with pytest.raises(MercError, match="share_relations"):
        make_model("graph=relational_gat", "graph.text=differential", "graph.share_relations=true")
