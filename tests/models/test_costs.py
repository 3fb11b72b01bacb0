"""Costs of a model against sums made by hand."""

from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from merc.config import choices, compose, plain
from merc.data.conversation import MODALITIES, ConversationBatch
from merc.data.corpora import CORPORA
from merc.models.__main__ import model_names, overview, parts_of
from merc.models.costs import flops_per_utterance, published_batches, published_model
from merc.models.emotion_model import EmotionModel, count_parameters

Make = Callable[..., EmotionModel]
PLAIN = ("denoiser=none", "graph=none", "gate=none", "fusion=none", "classifier=summed_logits")
WIDTH, CLASSES = 16, 4
DIMS, TEXT = {"text": 7, "audio": 5}, {"text": 7}


def test_linear_maps_cost_two_operations_per_weight(
    make_model: Make, make_batch: Callable[..., ConversationBatch]
) -> None:
    model = make_model(*PLAIN, dims=DIMS).eval()
    batches = [make_batch(lengths=lengths, dims=DIMS) for lengths in ((4, 1), (9,))]
    assert flops_per_utterance(model, batches) == 2 * (7 + 5) * WIDTH + 2 * 2 * WIDTH * CLASSES


def test_padding_of_a_model_that_pads_costs(make_model: Make, make_batch: Callable[..., ConversationBatch]) -> None:
    model = make_model(*PLAIN, "model.pad_dialogues=true", dims=TEXT).eval()
    per_row = 2 * 7 * WIDTH + 2 * WIDTH * CLASSES
    assert flops_per_utterance(model, [make_batch(lengths=(4, 1), dims=TEXT)]) == per_row * 8 / 5


def test_a_causal_model_costs_what_its_graphs_without_the_future_cost(
    make_model: Make, make_batch: Callable[..., ConversationBatch]
) -> None:
    both_ways, causal, online = (
        flops_per_utterance(make_model(override).eval(), [make_batch(lengths=(40,))])
        for override in ("model.causal=null", "model.causal=true", "graph.future=0")
    )
    assert causal == online < both_ways


@pytest.mark.parametrize("length", [1, 6])
def test_attention_costs_its_two_products(
    make_model: Make, make_batch: Callable[..., ConversationBatch], length: int
) -> None:
    arguments = ("denoiser.text=transformer", "hyperparameters.heads=2")
    batch = make_batch(lengths=(length,), dims=TEXT)
    without = flops_per_utterance(make_model(*PLAIN, dims=TEXT).eval(), [batch])
    model = make_model(*PLAIN, *arguments, dims=TEXT).eval()
    weights = (3 + 1 + 2) * WIDTH * WIDTH  # query, key, value; output; feed-forward network
    assert flops_per_utterance(model, [batch]) - without == 2 * weights + 2 * 2 * length * WIDTH


def test_published_batches_have_the_published_sizes_and_no_memory() -> None:
    for corpus in CORPORA.values():
        batches = list(published_batches(corpus, batch_size=16))
        assert sum(sum(batch.lengths) for batch in batches) == corpus.splits["test"].utterances
        assert sum(len(batch.lengths) for batch in batches) == corpus.splits["test"].dialogues
        assert {m: x.shape[1] for m, x in batches[0].features.items()} == dict(corpus.dims)
        assert batches[0].features["text"].device == torch.device("meta")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("amb_dsgdn_released", {"iemocap": 13_133_234, "meld": 12_481_973}),
        ("redifu_released", {"iemocap": 45_632_150, "meld": 11_480_467}),
    ],
)
def test_parameters_are_the_published_ones(name: str, published: dict[str, int]) -> None:
    for corpus, parameters in published.items():
        config = plain(compose([f"model={name}", f"data=synthetic_{corpus}"]))
        assert count_parameters(published_model(config, CORPORA[corpus])) == parameters


def test_parts_are_named_with_the_modalities_that_have_them() -> None:
    chosen = choices(["model=amb_dsgdn", "denoiser.visual=none", "graph.text=gcn", "graph/cross_modal=attention"])
    assert parts_of(chosen, MODALITIES) == {
        "denoiser": "transformer (audio)",
        "graph": "gcn (text), differential (audio, visual), attention (between modalities)",
        "gate": "none",
        "balancing": "adaptive",
        "fusion": "none",
        "classifier": "summed_logits",
        "objective": "fused_and_unimodal",
    }


def test_every_model_configuration_is_found() -> None:
    assert {"amb_dsgdn", "amb_dsgdn_released", "redifu", "redifu_released"} <= set(model_names())


def test_the_table_shows_costs_and_parts() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(overview(["amb_dsgdn_released"]))
    for part in ("amb_dsgdn_released", "13,133,234", "12,481,973", "denoiser: transformer (audio, visual)"):
        assert part in capture.get()
