"""The plain reference against the product, and against what the released implementations computed."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from merc.bench.reference import METHODS, REFERENCES, Boxes, Reference, reference_of, weights_of
from merc.config import compose, plain
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.models.build import build_model, build_objective
from merc.parity import Golden, _batch, _config, _info

INFO = CorpusInfo(
    dims={"text": 7, "audio": 5, "visual": 3},
    label_names=("calm", "glad", "gloomy", "cross"),
    speaker_slots=3,
    class_counts=(4, 3, 2, 1),
)
SMALL = ("hyperparameters.hidden_dim=16", "hyperparameters.heads=4", "hyperparameters.fusion_heads=2")
UNDROPPED = ("hyperparameters.dropout=0",)
GRAPH_DROPOUT = {"amb_dsgdn": "graph.default.dropout=0", "redifu": "graph.text.dropout=0"}

aten = torch.ops.aten


class Bends(TorchDispatchMode):
    """How near to zero the inputs of ReLUs come, where rounding decides which of two slopes a gradient takes."""

    nearest = float("inf")
    functions = (aten.relu.default, aten.leaky_relu.default)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self.functions:
            distances = args[0][args[0] != 0].abs()  # zeros are padding
            self.nearest = min([self.nearest, *distances.tolist()])
        return function(*args, **(kwargs or {}))


batches = st.builds(
    lambda lengths, seed: random_batch(tuple(lengths), seed),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 2**16),
)


def random_batch(lengths: tuple[int, ...], seed: int) -> ConversationBatch:
    generator = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    return ConversationBatch(
        features={m: torch.randn(rows, d, generator=generator) for m, d in INFO.dims.items()},
        speakers=torch.randint(INFO.speaker_slots, (rows,), generator=generator),
        labels=torch.randint(len(INFO.label_names), (rows,), generator=generator),
        lengths=lengths,
    )


def both(
    name: str, corpus: str, batch: ConversationBatch, window: int, training: bool
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """Logits, losses and gradients by name: the product's and the reference's."""
    config = configured(name, corpus, training)
    config["graph"].update(past=window, future=window)
    config["model"]["causal"] = False  # which a window of 0 would imply
    torch.manual_seed(len(batch.labels))
    model = build_model(config, INFO).train(training)
    reference = reference_of(name, model, config, INFO).train(training)

    prediction = model(batch)
    losses = build_objective(config, INFO)(prediction, batch.labels)
    losses["total"].backward()
    ours = {
        "logits": {**prediction.unimodal, "fused": prediction.fused},
        "losses": losses,
        "gradients": weights_of(name, model, gradients=True),
    }
    return ours, computed(reference, batch, window)


@cache
def composed(*overrides: str) -> str:
    return json.dumps(plain(compose([*overrides, *SMALL])))


def configured(name: str, corpus: str, undropped: bool) -> dict[str, Any]:
    switched_off = (*UNDROPPED, GRAPH_DROPOUT[name.removesuffix("_released")]) if undropped else ()
    config: dict[str, Any] = json.loads(composed(f"model={name}", f"data=synthetic_{corpus}", *switched_off))
    return config


def computed(reference: Reference, batch: ConversationBatch, window: int) -> dict[str, dict[str, Tensor]]:
    boxes = Boxes.of(batch, window, INFO.speaker_slots)
    with Bends() as bends:
        logits = reference(boxes)
    assert bends.nearest < float("inf")
    assume(bends.nearest > 1e-6)
    losses = reference.losses(logits, boxes)
    losses["total"].backward()
    gradients = {k.replace("/", "."): p.grad for k, p in reference.weights.items() if p.grad is not None}
    return {"logits": {m: x[boxes.mask] for m, x in logits.items()}, "losses": losses, "gradients": gradients}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("corpus", ["iemocap", "meld"])
@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(batch=batches, window=st.integers(0, 6))
def test_the_product_computes_what_the_reference_says(
    name: str, corpus: str, training: bool, batch: ConversationBatch, window: int
) -> None:
    ours, expected = both(name, corpus, batch, window, training)
    for kind in ("logits", "losses"):
        assert ours[kind].keys() == expected[kind].keys()
        for key, value in expected[kind].items():
            torch.testing.assert_close(ours[kind][key], value, atol=2e-5, rtol=1e-4)
    assert expected["gradients"].keys() <= ours["gradients"].keys()
    for key, gradient in ours["gradients"].items():
        wanted = expected["gradients"].get(key, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, wanted, atol=3e-5, rtol=1e-3)


def test_dropout_is_applied_in_training_only() -> None:
    config = plain(compose(["model=amb_dsgdn_released", "data=synthetic_meld", *SMALL]))
    reference = reference_of("amb_dsgdn_released", build_model(config, INFO), config, INFO)
    boxes = Boxes.of(random_batch((5, 3), 0), 2, INFO.speaker_slots)
    evaluated = [reference.eval()(boxes)["fused"] for _ in range(2)]
    assert evaluated[0].equal(evaluated[1])
    assert not reference.train()(boxes)["fused"].equal(reference(boxes)["fused"])


def test_the_reference_computes_what_was_released(golden_files: list[Path]) -> None:
    assert golden_files
    for path in golden_files:
        golden = Golden(path)
        mask, batch, config, info = golden.take("input.mask").bool(), _batch(golden), _config(golden), _info(golden)
        model = REFERENCES[f"{golden.setting('model')}_released"](golden.take_all("weight."), config, info).eval()
        boxes = Boxes.of(batch, int(golden.setting("window")), info.speaker_slots)
        assert boxes.inter.equal(golden.take("graph.inter_speaker"))
        assert boxes.intra.equal(golden.take("graph.intra_speaker"))
        logits = model(boxes)
        for m, x_BLC in logits.items():
            torch.testing.assert_close(x_BLC[mask], golden.take(f"output.logits.{m}")[mask], atol=1e-5, rtol=0)
        for kind, loss in model.losses(logits, boxes).items():
            torch.testing.assert_close(loss, golden.take(f"output.loss.{kind}"), atol=1e-5, rtol=0, check_dtype=False)


def test_every_released_model_has_a_reference() -> None:
    assert {f"{method}_released" for method in METHODS} <= REFERENCES.keys()
