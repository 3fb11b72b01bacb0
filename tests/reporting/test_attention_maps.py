"""The attention of a run in one dialogue, and the comparison of two, as a user types it."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from merc import report, train
from merc.config import compose
from merc.data.conversation import ConversationBatch
from merc.models.emotion_model import EmotionModel
from merc.models.lightning_module import EmotionRecognition
from merc.reporting.attention import DialogueAttention, attention_of, read_attention
from merc.reporting.report.attention import MEAN, SHOWN, AttentionPair
from merc.reporting.run_folder import RunFolder

SUBGRAPHS = [f"{modality} {side}-speaker" for modality in ("text", "audio", "visual") for side in ("inter", "intra")]


def run_at(folder: Path, *overrides: str) -> Path:
    small = ["data.size=0.03", "data.seed=1", "hyperparameters.hidden_dim=16", "hyperparameters.heads=2"]
    quiet = ["hyperparameters.max_epochs=1", "trainer=cpu", "trainer.enable_progress_bar=false", f"run_dir='{folder}'"]
    train.train(compose([*small, *quiet, *overrides]))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that training left: the whole model, without visual features, on other data, without attention."""
    root = tmp_path_factory.mktemp("runs")
    return {
        "full": run_at(root / "full/seed=1"),
        "two": run_at(root / "two/seed=1", "data.modalities=[text,audio]", "graph=gat"),
        "other": run_at(root / "other/seed=1", "data.seed=2"),
        "none": run_at(root / "none/seed=1", "denoiser=none", "graph=gcn"),
    }


def compare(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["merc.report", "compare", *arguments])
    report.main()


def test_every_layer_with_attention_is_seen_and_left_as_it_was(
    make_model: Callable[..., EmotionModel], make_batch: Callable[..., ConversationBatch]
) -> None:
    model, batch = make_model("graph.layers=2").eval(), make_batch()
    before = model(batch).fused
    layers = attention_of(model, batch)
    graphs = [f"graph {name}{again}" for name in SUBGRAPHS for again in ("", " 2")]
    assert sorted(layers) == sorted(["denoiser audio", "denoiser visual", *graphs])
    assert list(layers["graph text inter-speaker"]) == ["head 1", "head 2", "output"]
    assert all(values.shape == (14, 14) for heads in layers.values() for values in heads.values())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(batch).fused, before)


def test_a_run_is_read_with_the_weights_that_its_predictions_are_of(runs: dict[str, Path]) -> None:
    folder = RunFolder(runs["full"])
    attention = read_attention(folder, "test_36")
    module = EmotionRecognition.from_checkpoint(folder.reported)
    assert attention.utterances[0].startswith("test_36")
    length = len(attention.utterances)
    assert len(attention.speakers) == len(attention.labels) == length
    softmax = attention.layers["denoiser audio"]
    assert len(softmax) == module.config["hyperparameters"]["heads"]
    for values in softmax.values():
        assert values.shape == (length, length)
        np.testing.assert_allclose(values.sum(1), 1, atol=1e-6)
    block = module.model.graph.branches.branches["text"].layers["inter_speaker"][0]
    shares = 1 - block.heads.coefficients().detach().double().numpy()
    for head, share in zip(("head 1", "head 2"), shares, strict=True):
        np.testing.assert_allclose(attention.layers["graph text inter-speaker"][head].sum(1), share, atol=1e-5)


def test_two_runs_are_compared(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(runs["full"]), str(runs["two"]), "attention=test_36", f"out={tmp_path}"]
    compare(monkeypatch, *arguments)
    target = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("Everything: "))
    folder = target.parent
    layers = ["denoiser-audio", "denoiser-visual", *(f"graph-{name.replace(' ', '-')}" for name in SUBGRAPHS)]
    images = {path.stem for path in folder.glob("attention-*.png")}
    assert images == {f"attention-{layer}" for layer in layers}
    page, text = (folder / "compare.html").read_text(), (folder / "compare.md").read_text()
    for layer in layers:
        assert f'aria-label="attention-{layer}"' in page
        assert f"![attention-{layer}](attention-{layer}.png)" in text
    alone, both = (Image.open(folder / f"attention-graph-{m}-intra-speaker.png").width for m in ("visual", "text"))
    assert alone < both / 2, "a layer of one run alone needs one column"

    rows = list(csv.DictReader((folder / "attention.csv").open()))
    for name, path in (("full/seed=1", runs["full"]), ("two/seed=1", runs["two"])):
        attention = read_attention(RunFolder(path), "test_36")
        for layer, heads in attention.layers.items():
            for head, values in heads.items():
                mine = [row for row in rows if (row["run"], row["layer"], row["head"]) == (name, layer, head)]
                again = np.zeros_like(values)
                for row in mine:
                    places = [attention.utterances.index(row[end]) for end in ("receiver", "source")]
                    again[tuple(places)] = float(row["weight"])
                np.testing.assert_allclose(again, values, rtol=1e-5)


def test_figures_can_be_left_out(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(monkeypatch, str(runs["full"]), str(runs["two"]), "attention=test_36", f"out={tmp_path}", "figures=false")
    (folder,) = (tmp_path / "compare").iterdir()
    assert {path.name for path in folder.iterdir()} == {"compare.md", "compare.html", "attention.csv"}


def test_differences_are_drawn_where_both_have_a_head(runs: dict[str, Path]) -> None:
    first, second = (read_attention(RunFolder(runs[name]), "test_36") for name in ("full", "two"))
    figure = AttentionPair(("a", "b"), "test_36", first, second).figures()["attention-denoiser-audio"]
    panels = figure.axes
    one, two = (np.stack(list(each.layers["denoiser audio"].values())) for each in (first, second))
    np.testing.assert_allclose(panels[2].images[0].get_array(), one.mean(0) - two.mean(0))
    np.testing.assert_allclose(panels[5].images[0].get_array(), one[0] - two[0])
    assert [panels[row].get_ylabel() for row in (0, 3)] == [MEAN, "head 1"]
    ticks = [label.get_text() for label in panels[0].get_yticklabels()]
    assert ticks[0] == f"{first.utterances[0]} [{first.speakers[0] + 1}]"


def test_many_heads_are_drawn_in_part_and_the_caption_says_so() -> None:
    heads = {f"head {index + 1}": np.full((2, 2), float(index)) for index in range(10)}
    both = [DialogueAttention(("u1", "u2"), (0, 1), (0, 0), {"denoiser text": heads}) for _ in range(2)]
    pair = AttentionPair(("a", "b"), "d", *both)
    maps = pair.maps("denoiser text")
    assert list(maps) == [MEAN, *[f"head {number}" for number in range(1, SHOWN + 1)]]
    assert maps[MEAN][0] == pytest.approx(np.full((2, 2), 4.5))
    assert pair.captions["attention-denoiser-text"].endswith("the first 8 of 10 heads and their mean over all.")
    assert "head 10" in pair.csv()


@pytest.mark.parametrize(
    ("first", "second", "arguments", "message"),
    [
        ("full", "two", ["attention=tset_36"], "has no dialogue 'tset_36'. Did you mean 'test_36'?"),
        ("full", "other", ["attention=test_36"], "'test_36' of the first run is not that of the second"),
        ("full", "two", ["attention=test_36", "plugins=[nowhere_at_all]"], "Python finds no package 'nowhere_at_all'"),
    ],
)
def test_mistakes_end_in_one_line(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        compare(monkeypatch, str(runs[first]), str(runs[second]), f"out={tmp_path / 'out'}", *arguments)
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_models_without_attention_have_none_to_show(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = run_at(tmp_path / "again/seed=1", "denoiser=none", "graph=gcn", "optimizer.lr=0.1")
    with pytest.raises(SystemExit, match="Neither model has attention"):
        compare(monkeypatch, str(runs["none"]), str(again), "attention=test_36", f"out={tmp_path}")


def test_one_run_has_nothing_to_be_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["merc.report", "attention=test_36"])
    with pytest.raises(SystemExit, match="is for two runs"):
        report.main()
