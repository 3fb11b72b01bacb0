"""Losses against torch's and against hand-written sums."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from merc.data.conversation import CorpusInfo
from merc.errors import MercError
from merc.models.lightning_module import EmotionRecognition, load_checkpoint
from merc.models.objectives import FusedAndUnimodal
from merc.models.prediction import Prediction

COUNTS = (5, 3, 2)
LABELS = ("calm", "glad", "cross")


def objective(class_weights: Any = "none", unimodal_weight: Any = 0.1, **options: Any) -> FusedAndUnimodal:
    defaults = {"unimodal": "squared", "detach_weight": False, "focal_gamma": 0.0}
    corpus = {"modalities": ("text", "audio"), "class_counts": COUNTS, "label_names": LABELS} | options
    return FusedAndUnimodal(class_weights=class_weights, unimodal_weight=unimodal_weight, **(defaults | corpus))


def prediction(kept: torch.Tensor | None = None) -> tuple[Prediction, torch.Tensor]:
    torch.manual_seed(0)
    logits = {name: torch.randn(6, 3, requires_grad=True) for name in ("fused", "text", "audio")}
    unimodal = {name: logits[name] for name in ("text", "audio")}
    return Prediction(logits["fused"], unimodal, kept), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("weights", ["none", "inverse_frequency", [1.0, 2.0, 3.0]])
def test_losses_equal_torch(weights: str | Sequence[float]) -> None:
    given, labels = prediction()
    class_weights = {"none": None, "inverse_frequency": torch.tensor([2.0, 10 / 3, 5.0])}
    expected_weights = class_weights[weights] if isinstance(weights, str) else torch.tensor(weights)
    losses = objective(weights)(given, labels)
    expected = {"fused": F.cross_entropy(given.fused, labels, expected_weights)}
    expected |= {m: F.cross_entropy(x, labels, expected_weights) for m, x in given.unimodal.items()}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    total = expected["fused"] + expected["text"] ** 2 / 10 + expected["audio"] ** 2 / 10
    torch.testing.assert_close(losses["total"], total)


@pytest.mark.parametrize("unimodal", ["squared", "linear"])
@pytest.mark.parametrize("names", [("audio",), ("audio", "text")])
def test_a_classifier_may_have_heads_for_some_modalities_in_any_order(names: tuple[str, ...], unimodal: str) -> None:
    given, labels = prediction()
    given = Prediction(given.fused, {m: given.unimodal[m] for m in names})
    alphas = {"text": 0.5, "audio": 2.0}
    losses = objective(unimodal_weight=alphas, unimodal=unimodal)(given, labels)
    assert list(losses) == ["fused", *names, "total"]
    own = {m: F.cross_entropy(x, labels) for m, x in given.unimodal.items()}
    added = sum(alphas[m] * (loss**2 if unimodal == "squared" else loss) for m, loss in own.items())
    torch.testing.assert_close(losses["total"], F.cross_entropy(given.fused, labels) + added)


def test_a_detached_weight_halves_the_unimodal_gradient_and_keeps_the_value() -> None:
    gradients, values = [], []
    for detach in (False, True):
        given, labels = prediction()
        total = objective(detach_weight=detach)(given, labels)["total"]
        total.backward()
        values.append(total.item())
        gradients.append(given.unimodal["text"].grad)
    assert values[0] == values[1]
    torch.testing.assert_close(gradients[0], 2 * gradients[1])


def test_dropped_utterances_and_their_labels_do_not_count() -> None:
    kept = torch.tensor([True, False, True, True, False, True])
    given, labels = prediction(kept)
    part = Prediction(given.fused[kept], {m: x[kept] for m, x in given.unimodal.items()})
    ours = objective("inverse_frequency")(given, labels)
    expected = objective("inverse_frequency")(part, labels[kept])
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value)


def test_nothing_kept_is_no_loss_and_no_gradient() -> None:
    given, labels = prediction(torch.zeros(6, dtype=torch.bool))
    total = objective()(given, labels)["total"]
    total.backward()
    assert total.item() == 0
    assert not given.fused.grad.any()


def test_constant_weights_are_linear_in_the_losses() -> None:
    given, labels = prediction()
    losses = objective(unimodal_weight={"text": 0.5, "audio": 2.0}, unimodal="linear")(given, labels)
    likelihoods = {m: F.cross_entropy(x, labels) for m, x in given.unimodal.items()}
    expected = F.cross_entropy(given.fused, labels) + 0.5 * likelihoods["text"] + 2 * likelihoods["audio"]
    torch.testing.assert_close(losses["total"], expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("weights", ["none", [1.0, 2.0, 3.0]])
def test_focal_loss_equals_its_equation(gamma: float, weights: Any) -> None:
    given, labels = prediction()
    losses = objective(weights, focal_gamma=gamma)(given, labels)
    for name, logits in {"fused": given.fused, **given.unimodal}.items():
        total = mass = 0.0
        for row, label in zip(logits.softmax(1), labels.tolist(), strict=True):
            weight = 1.0 if weights == "none" else weights[label]
            total += -weight * (1 - row[label].item()) ** gamma * row[label].log().item()
            mass += weight
        assert losses[name].item() == pytest.approx(total / mass, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_has_a_gradient_where_the_model_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    objective(focal_gamma=gamma)(Prediction(logits, {}), torch.tensor([0, 2]))["total"].backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1].any()


WEIGHTS = {"calm": 1.5, "glad": 2.0, "cross": 0.25}
FILES = {
    "weights.json": json.dumps(WEIGHTS),
    "weights.yaml": "cross: 0.25\ncalm: 1.5\nglad: 2\n",
    "weights.csv": "label,weight\nglad,2.0\ncross,0.25\ncalm,1.5\n",
    "from_a_spreadsheet.csv": "\ufefflabel,weight\r\nglad,2.0\r\ncross,0.25\r\ncalm,1.5\r\n",
}


@pytest.mark.parametrize("name", FILES)
def test_class_weights_from_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert objective(str(tmp_path / name)).weights.tolist() == [1.5, 2.0, 0.25]


def test_a_checkpoint_does_not_need_the_file_of_class_weights(
    tmp_path: Path, make_config: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "weights.json"
    path.write_text(FILES["weights.json"])
    info = CorpusInfo(dims={"text": 3, "audio": 2}, label_names=LABELS, speaker_slots=2, class_counts=COUNTS)
    config = make_config("data.modalities=[text,audio]", f"hyperparameters.class_weights={path}")
    module = EmotionRecognition(config, info)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    path.unlink()
    assert load_checkpoint(tmp_path / "last.ckpt")["merc"]["config"]["objective"]["class_weights"] == WEIGHTS
    rebuilt = EmotionRecognition.from_checkpoint(tmp_path / "last.ckpt")
    assert rebuilt.objective.weights.tolist() == [1.5, 2.0, 0.25]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"calm": 1, "glad": 1}', "no weight for cross"),
        ('{"calm": 1, "glad": 1, "cross": 1, "gladd": 2}', "'gladd', which is no class.* Did you mean 'glad'"),
        ('{"calm": 1, "glad": -1, "cross": 1}', "gives glad the weight -1"),
        ('{"calm": 1, "glad": "much", "cross": 1}', "gives glad the weight much"),
        ('{"calm": 1, "glad": NaN, "cross": 1}', "gives glad the weight nan"),
        ("[1, 2, 3]", "holds no class weights"),
        ("{calm", "holds no class weights"),
    ],
)
def test_a_wrong_file_of_class_weights_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(MercError, match=message):
        objective(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.csv", b"calm;1\nglad;2\n", r"columns label and weight"),
        ("weights.yaml", b"calm: [", "holds no class weights"),
        ("weights.yaml", b"\xff\xfe\x00", "holds no class weights"),
        ("weights.yaml", None, "cannot be read: No such file"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MercError, match=message):
        objective(str(tmp_path / name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": "inverse"}, "class_weights=inverse must be"),
        ({"class_weights": "inverse_freqency"}, "Did you mean 'inverse_frequency'"),
        ({"class_weights": [1.0, 2.0]}, "class_weights has 2 weights for 3 classes"),
        ({"unimodal_weight": {"text": 1.0}}, "no weight for audio"),
        ({"unimodal": "cubic"}, "squared or linear"),
        ({"focal_gamma": -1.0}, "focal_gamma=-1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MercError, match=message):
        objective(**options)


def test_published_weights_of_iemocap() -> None:
    counts = (504, 839, 1324, 933, 742, 1468)
    weights = objective("inverse_frequency", class_counts=counts, label_names=tuple("abcdef")).weights
    published = torch.tensor([11.5278, 6.9249, 4.3882, 6.2272, 7.8302, 3.9578])
    torch.testing.assert_close(weights, published, atol=1e-4, rtol=0)
