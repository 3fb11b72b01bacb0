"""The floor: which linear maps are found, and what they cost."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from merc.bench.floor import Floor, LinearMap, flops, linear_maps
from merc.config import compose, plain
from merc.data.conversation import ConversationBatch
from merc.data.corpora import CORPORA
from merc.kernels import pytorch_alone
from merc.models.costs import published_batches, published_model
from merc.models.emotion_model import EmotionModel

Make = Callable[..., EmotionModel]
MakeBatch = Callable[..., ConversationBatch]


def published_maps(name: str, corpus: str) -> tuple[list[LinearMap], ConversationBatch]:
    config = plain(compose([f"model={name}", f"data=synthetic_{corpus}"]))
    model = published_model(config, CORPORA[corpus])
    batch = next(published_batches(CORPORA[corpus], config["data"]["batch_size"]))
    return linear_maps(model, batch), batch


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("name", ["amb_dsgdn", "amb_dsgdn_released"])
def test_every_matrix_of_amb_dsgdn_is_applied_to_every_utterance_once(name: str, corpus: str) -> None:
    maps, batch = published_maps(name, corpus)
    rows, dims = sum(batch.lengths), CORPORA[corpus].dims
    width = 512
    # Linear maps of the stages, by the paper's widths: projections, Transformers, graphs, gates, heads.
    graph = 2 * width * width + 2 * width * width + width * width
    weights = sum(dims.values()) * width + 2 * 6 * width**2 + 6 * graph + 3 * width * len(CORPORA[corpus].label_names)
    weights += 2 * width**2 if name.endswith("released") else 0
    assert flops(maps, training=False) == 2 * rows * weights
    assert flops(maps, training=True) == 6 * rows * weights - 2 * rows * sum(dims.values()) * width
    per_utterance = flops(maps, training=True) / rows / 1e6
    if (name, corpus) == ("amb_dsgdn_released", "iemocap"):
        assert per_utterance == pytest.approx(75, abs=1)


@pytest.mark.parametrize("corpus", CORPORA)
def test_maps_of_redifu_as_released(corpus: str) -> None:
    maps, batch = published_maps("redifu_released", corpus)
    rows, dims = len(batch.lengths) * max(batch.lengths), CORPORA[corpus].dims
    width = {"iemocap": 512, "meld": 256}[corpus]
    encoder = 1 + 2 + 3 + 1 + 2  # delta gate, context gate, q k v, output, feed-forward
    graphs = 2 * 5
    # q of the modality; k, v and output for each of two others; gate; feed-forward
    fusion = 1 + 2 * 2 + 2 * 1 + 2 + (4 + 16 + 16 + 4)
    squares = 2 * encoder + graphs + 2 * 1 + 3 * fusion
    narrow = 2 * width + 3 * width * len(CORPORA[corpus].label_names)  # context gates' scores, heads
    weights = sum(dims.values()) * width + squares * width**2 + narrow
    assert flops(maps, training=False) == 2 * rows * weights


@pytest.mark.parametrize("name", ["amb_dsgdn", "amb_dsgdn_released", "redifu_released", "redifu"])
def test_no_matrix_is_missed(make_model: Make, make_batch: MakeBatch, name: str) -> None:
    model = make_model(f"model={name}", "hyperparameters.heads=4", "hyperparameters.fusion_heads=2")
    found = {linear_map.weight for linear_map in linear_maps(model, make_batch())}
    vectors = ("norm", "scores", "lambda", "table", "convolution", "receiver", "source", "direction")
    matrices = {n for n, p in model.named_parameters() if p.ndim > 1 and not any(v in n for v in vectors)}
    assert found == matrices | {n for n in found if "context_gate.score" in n}


def test_the_product_never_does_less(make_model: Make, make_batch: MakeBatch) -> None:
    model, batch = make_model("model=amb_dsgdn_released", "hyperparameters.heads=4"), make_batch()
    with pytorch_alone(), FlopCounterMode(display=False) as counter:  # which counts PyTorch's operators only
        model(batch).fused.sum().backward()
    assert flops(linear_maps(model, batch), training=True) < counter.get_total_flops()


@pytest.mark.parametrize(("dtype", "own"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)])
def test_the_floor_computes_what_it_counts(
    make_model: Make, make_batch: MakeBatch, dtype: torch.dtype, own: bool
) -> None:
    model = make_model("model=amb_dsgdn_released", "hyperparameters.heads=4")
    batches = [linear_maps(model, make_batch(lengths=lengths)) for lengths in ((4, 1), (9,))]
    for training in (True, False):
        floor = Floor(batches, training, dtype, own)
        with FlopCounterMode(display=False) as counter:
            floor.run()
        assert counter.get_total_flops() == sum(flops(maps, training) for maps in batches)


def test_the_model_is_left_as_it_was(make_model: Make, make_batch: MakeBatch) -> None:
    model = make_model("model=redifu", "hyperparameters.heads=4", "hyperparameters.fusion_heads=2").train()
    linear_maps(model, make_batch())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
