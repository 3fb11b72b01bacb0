"""The whole model: sizes, subsets of modalities, and predictions that depend on nothing but the dialogue."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models import emotion_model
from merc.models.emotion_model import EmotionModel, missing_rows

CONF = Path(__file__).resolve().parents[2] / "conf"
JOINT = ("concat", "gated", "low_rank")
SINGLE_HEAD = ("classifier=single_head", "objective=fused", "balancing=none")
VARIANTS = [
    ("model=amb_dsgdn",),
    ("model=amb_dsgdn_released",),
    ("denoiser=none",),
    ("graph=none",),
    ("graph=gcn",),
    ("graph=relational_gat",),
    ("graph=gat",),
    ("graph.layers=2", "graph.self_loops=false", "graph/cross_modal=attention"),
    ("graph.future=0",),
    ("gate=sigmoid",),
    ("balancing=none",),
    ("balancing=fixed",),
    ("denoiser=diff_transformer", "denoiser.default.layers=2"),
    ("denoiser=recurrent", "denoiser.text=recurrent"),
    ("balancing=ogm_ge",),
    ("fusion=modality_attention",),
    ("fusion=concat", *SINGLE_HEAD),
    ("fusion=gated", *SINGLE_HEAD),
    ("fusion=gated", "fusion.module.gate=softmax", *SINGLE_HEAD),
    ("fusion=low_rank", *SINGLE_HEAD),
    SINGLE_HEAD,
    ("classifier=weighted_logits", "hyperparameters.logit_weights={text: 1, audio: 1, visual: 0.4}"),
    ("classifier=fixed_weights", "hyperparameters.activation=leaky_relu"),
    ("graph.subgraphs=[intra_speaker]",),
    ("denoiser.text=transformer", "denoiser.default.layers=2", "graph.audio=gcn"),
]


def pick(batch: ConversationBatch, dialogues: Sequence[int]) -> ConversationBatch:
    rows = torch.cat([(batch.dialogues == b).nonzero()[:, 0] for b in dialogues])
    return ConversationBatch(
        features={m: x[rows] for m, x in batch.features.items()},
        speakers=batch.speakers[rows],
        labels=batch.labels[rows],
        lengths=tuple(batch.lengths[b] for b in dialogues),
    )


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_predictions_depend_on_the_dialogue_alone(
    make_model: Callable[..., EmotionModel], make_batch: Callable[..., ConversationBatch], overrides: tuple[str, ...]
) -> None:
    model = make_model(*overrides).eval()
    batch = make_batch(lengths=(5, 1, 12, 3))
    together = model(batch)
    for dialogues in ([0], [1], [2, 3], [3, 1, 0]):
        alone = model(pick(batch, dialogues))
        rows = torch.cat([(batch.dialogues == b).nonzero()[:, 0] for b in dialogues])
        torch.testing.assert_close(alone.fused, together.fused[rows], atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(others=st.lists(st.integers(1, 60), max_size=4), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", ["amb_dsgdn", "amb_dsgdn_released"])
def test_longer_dialogues_beside_it_change_nothing(
    make_model: Callable[..., EmotionModel],
    make_batch: Callable[..., ConversationBatch],
    name: str,
    others: list[int],
    seed: int,
) -> None:
    model = make_model(f"model={name}").eval()
    batch = make_batch(lengths=(7, *others), seed=seed)
    torch.testing.assert_close(model(batch).fused[:7], model(pick(batch, [0])).fused, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_one_training_step_moves_every_parameter(
    make_model: Callable[..., EmotionModel], make_batch: Callable[..., ConversationBatch], overrides: tuple[str, ...]
) -> None:
    model = make_model(*overrides).train()
    prediction = model(make_batch())
    loss = prediction.fused.square().sum() + sum(x.square().sum() for x in prediction.unimodal.values())
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("modalities", [c for n in (1, 2, 3) for c in combinations(("text", "audio", "visual"), n)])
@pytest.mark.parametrize("name", ["amb_dsgdn", "amb_dsgdn_released"])
def test_any_modalities_of_any_dimension(
    make_model: Callable[..., EmotionModel],
    make_batch: Callable[..., ConversationBatch],
    modalities: tuple[str, ...],
    name: str,
) -> None:
    dims = {modality: 2 + 3 * i for i, modality in enumerate(modalities)}
    model = make_model(f"model={name}", f"data.modalities=[{','.join(modalities)}]", dims=dims).train()
    prediction = model(make_batch(dims=dims))
    assert prediction.fused.shape == (14, 4)
    assert tuple(prediction.unimodal) == modalities


def test_a_modality_of_another_name_works(
    make_model: Callable[..., EmotionModel], make_batch: Callable[..., ConversationBatch]
) -> None:
    dims = {"text": 4, "physiology": 6}
    overrides = ("data.modalities=[text,physiology]", "+graph.physiology=gcn")
    assert set(make_model(*overrides, dims=dims)(make_batch(dims=dims)).unimodal) == set(dims)


HEADS = ("hyperparameters.heads=4", "hyperparameters.fusion_heads=2")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem[0] != "_")


EVERY_CHOICE = [
    *((f"model={name}",) for name in choices("model")),
    *((f"denoiser={name}", f"denoiser.text={name}") for name in choices("denoiser") if name != "recurrent"),
    ("denoiser=recurrent", "denoiser.default.bidirectional=false"),
    ("denoiser=differential", "denoiser.default.window=2", "model.pad_dialogues=true"),
    *((f"graph={name}", "denoiser=none") for name in choices("graph")),
    *((f"graph/cross_modal={name}", "denoiser=none", "graph=none") for name in choices("graph/cross_modal")),
    *((f"gate={name}",) for name in choices("gate")),
    *((f"fusion={name}", *(SINGLE_HEAD if name in JOINT else ()), "denoiser=none") for name in choices("fusion")),
    *((f"classifier={name}", "objective=fused", "balancing=none") for name in choices("classifier")),
]


@pytest.mark.parametrize("causal", ["graph.future=0", "model.causal=true"])
@pytest.mark.parametrize("overrides", EVERY_CHOICE, ids=" ".join)
def test_no_future_means_no_future(
    make_model: Callable[..., EmotionModel],
    make_batch: Callable[..., ConversationBatch],
    overrides: tuple[str, ...],
    causal: str,
) -> None:
    """What has been said is classified as if nothing followed, and what was just said counts."""
    model = make_model(*HEADS, *overrides, causal).eval()
    whole = make_batch(lengths=(12,))
    beginning = ConversationBatch(
        {m: x[:8] for m, x in whole.features.items()}, whole.speakers[:8], whole.labels[:8], (8,)
    )
    torch.testing.assert_close(model(whole).fused[:8], model(beginning).fused, atol=1e-6, rtol=1e-5)
    before = model(whole).fused
    for features in whole.features.values():
        features[8:] += 1.0
    after = model(whole).fused
    torch.testing.assert_close(after[:8], before[:8])
    assert not torch.allclose(after[8:], before[8:])


@pytest.mark.parametrize(
    ("overrides", "sees"),
    [
        (("denoiser=none",), False),
        *(((f"denoiser={name}",), True) for name in ("transformer", "differential", "diff_transformer", "recurrent")),
        *((("denoiser=none", f"fusion={name}"), True) for name in ("cross_attention", "text_guided_diffusion")),
    ],
    ids=str,
)
def test_a_graph_without_the_future_leaves_it_to_the_other_stages(
    make_model: Callable[..., EmotionModel],
    make_batch: Callable[..., ConversationBatch],
    overrides: tuple[str, ...],
    sees: bool,
) -> None:
    model = make_model(*HEADS, *overrides, "graph.future=0", "model.causal=false").eval()
    batch = make_batch(lengths=(12,))
    before = model(batch).fused[:8]
    for features in batch.features.values():
        features[8:] += 1.0
    assert torch.allclose(model(batch).fused[:8], before) is not sees


@pytest.mark.parametrize("graph", ["differential", "relational_gat", "gat", "gcn"])
def test_padding_leaves_every_graph_finite(
    make_model: Callable[..., EmotionModel], make_batch: Callable[..., ConversationBatch], graph: str
) -> None:
    model = make_model(f"graph={graph}", "model.pad_dialogues=true").eval()
    assert model(make_batch(lengths=(1, 20))).fused.isfinite().all()


@pytest.mark.parametrize("graph", ["differential", "relational_gat", "gat", "gcn"])
def test_without_self_loops_nothing_but_neighbours_is_received(
    make_model: Callable[..., EmotionModel], make_batch: Callable[..., ConversationBatch], graph: str
) -> None:
    model = make_model(f"graph={graph}", "graph.self_loops=false", "denoiser=none").eval()
    together = make_batch(lengths=(1, 6, 1))
    alone = pick(together, [0])
    assert model(together).fused.isfinite().all()
    torch.testing.assert_close(model(together).fused[:1], model(alone).fused, atol=1e-5, rtol=1e-4)


def test_layers_are_rounds_with_weights_of_their_own(make_model: Callable[..., EmotionModel]) -> None:
    one, two = (make_model(f"graph.layers={layers}") for layers in (1, 2))
    per_round = sum(p.numel() for p in one.graph.parameters())
    assert sum(p.numel() for p in two.graph.parameters()) == 2 * per_round


def test_context_reaches_the_prediction(
    make_model: Callable[..., EmotionModel], make_batch: Callable[..., ConversationBatch]
) -> None:
    batch = make_batch(lengths=(12,))
    model = make_model().eval()
    before = model(batch).fused
    for features in batch.features.values():
        features[6] += 1.0
    assert not torch.allclose(model(batch).fused[5], before[5])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("graph.subgraphs=[inter_speeker]", "Did you mean 'inter_speaker'"),
        ("graph.past=-1", "must not be negative"),
        ("denoiser.default.heads=3", "heads=3"),
        ("classifier.weights={text: 1}", "no weight for audio, visual"),
        ("graph.default._target_=os.system", "lies outside"),
        ("graph.default._target_=merc.models.graphs.NoSuch", "cannot be imported"),
        ("+graph.default.colour=red", "cannot be built"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make_model: Callable[..., EmotionModel], override: str, message: str
) -> None:
    with pytest.raises(MercError, match=message):
        make_model(override)


@given(st.integers(1, 5000))
@settings(deadline=None)
def test_few_rows_are_added(rows: int) -> None:
    assert 0 <= missing_rows(rows) <= rows / 16
    assert rows >= 128 or missing_rows(rows) == 0


@pytest.mark.parametrize("rows", [128, 512, 1024])
def test_few_numbers_of_rows_are_left(rows: int) -> None:
    assert len({n + missing_rows(n) for n in range(rows, 2 * rows)}) == 17


@pytest.mark.parametrize(
    "overrides",
    [(), ("model=redifu",), ("denoiser=recurrent",), ("denoiser=differential",), ("graph/cross_modal=attention",)],
    ids=" ".join,
)
def test_filler_changes_no_prediction_and_no_gradient(
    make_model: Callable[..., EmotionModel],
    make_batch: Callable[..., ConversationBatch],
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
) -> None:
    model = make_model(*overrides, "hyperparameters.heads=4", "hyperparameters.fusion_heads=2").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = make_batch(lengths=(9, 40, 100, 1))
    results = []
    for needed in (False, True):
        monkeypatch.setattr(emotion_model, "compiled_for_each_shape", lambda _, needed=needed: needed)
        model.zero_grad()
        prediction = model(batch)
        prediction.fused.square().sum().backward()
        results.append((prediction, [p.grad for p in model.parameters() if p.grad is not None]))
    (plain, gradients), (filled, others) = results
    assert missing_rows(150) == 2
    torch.testing.assert_close(filled.fused, plain.fused, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(filled.unimodal, plain.unimodal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others, gradients, rtol=1e-3, atol=1e-4)
