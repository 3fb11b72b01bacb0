"""docs/extending.md does what it says: its files are written, its commands run, its table of calls holds."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from test_readme import ROOT, commands_by_section, shrunk

from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.errors import MercError
from merc.models.__main__ import STAGES
from merc.models.build import build_model, build_objective

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = {match[1]: body for _, body in BLOCKS if (match := re.match(r"# (\S+\.(?:py|yaml))\n", body))}
COMMANDS = [command for commands in commands_by_section(PAGE).values() for command in commands]


def lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def test_a_new_denoiser_takes_less_than_40_lines_outside_its_class() -> None:
    (denoiser,) = (node for node in ast.parse(FILES["mine/__init__.py"]).body if isinstance(node, ast.ClassDef))
    source = ast.get_source_segment(FILES["mine/__init__.py"], denoiser)
    assert source is not None
    everything = sum(lines(body) for _, body in BLOCKS)
    assert everything > lines(source) > 10
    assert everything - lines(source) < 40


def test_every_block_is_a_file_or_commands() -> None:
    assert sorted(FILES) == ["mine/__init__.py", "mine/conf/denoiser/module/neighbours.yaml", "test_mine.py"]
    assert {language for language, body in BLOCKS if body not in FILES.values()} == {"bash"}


def test_the_readme_leads_here() -> None:
    assert "(docs/extending.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_has_every_stage_and_its_place_in_the_configuration() -> None:
    rows = re.findall(r"^\| (\w+) \| `([\w/]+)/mine.yaml`", PAGE, re.MULTILINE)
    assert [stage for stage, _ in rows] == list(STAGES)
    assert all((ROOT / "conf" / group).is_dir() for _, group in rows)


def test_every_file_that_the_page_names_exists() -> None:
    assert all((ROOT / name).is_file() for name in re.findall(r"`(merc/[\w/]+\.py)`", PAGE))


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path: Path, reader: dict[str, str]) -> None:
    for name, body in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body, encoding="utf-8")
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", shrunk(command)], cwd=tmp_path, env=reader, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{shrunk(command)}\n{done.stdout}\n{done.stderr}"
    neighbours = tmp_path / "runs" / "neighbours" / "config.yaml"
    others = sorted(set(tmp_path.glob("runs/**/config.yaml")) - {neighbours})
    first, second = (OmegaConf.load(path).denoiser for path in (neighbours, *others))
    own = "mine.NeighbourDenoiser"
    assert (first.default._target_, first.text._target_) == (own, None)
    assert (second.default._target_ == own, second.text._target_, second.text.reach) == (False, own, 1)


@pytest.fixture
def reader() -> dict[str, str]:
    """Environment variables of somebody who works in the project's environment."""
    return {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


PARTS = """
import torch
from torch import nn
from merc.models.prediction import Prediction


class Part(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments


class Denoiser(Part):
    def forward(self, x_ND, speaker_ND, batch):
        assert x_ND.shape == speaker_ND.shape
        return x_ND + 1


class Graph(Part):
    def forward(self, x_ND, graph):
        hood = graph.neighbourhood
        received = graph.connected.float() @ hood.windows(x_ND)
        assert received.shape == hood.blocks(x_ND).shape
        return hood.unblock(received)


class Gate(Part):
    def forward(self, x_ND):
        return 2 * x_ND


class Mechanism(Part):
    def forward(self, rows, batch):
        assert self.training
        return rows, torch.ones_like(batch.labels, dtype=torch.bool)


class Fusion(Part):
    joint = True

    def forward(self, rows, batch):
        return {"fused": sum(rows.values())}


class Classifier(Part):
    def forward(self, rows):
        return Prediction(fused=rows["fused"][:, : self.arguments["num_classes"]], unimodal={})


class Objective(Part):
    def forward(self, prediction, labels_N):
        return {"total": nn.functional.cross_entropy(prediction.fused, labels_N)}
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a package that has the least of every part."""
    (tmp_path / "least_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    return "least_parts"


def test_every_part_is_called_as_the_page_says(
    parts: str, make_config: Callable[..., dict[str, Any]], make_batch: Callable[..., ConversationBatch]
) -> None:
    def node(name: str) -> dict[str, str]:
        return {"_target_": f"{parts}.{name}"}

    batch = make_batch()
    info = CorpusInfo({m: x.shape[1] for m, x in batch.features.items()}, ("a", "b", "c", "d"), 3, (4, 3, 2, 1))
    config = make_config("denoiser.text=transformer", "gate=sigmoid")
    for stage in ("denoiser", "graph", "gate"):
        config[stage] |= dict.fromkeys(("default", *info.modalities), node(stage.capitalize()))
    config |= {
        "plugins": [parts],
        "balancing": {"mechanism": node("Mechanism"), "policy": None},
        "fusion": {"module": node("Fusion")},
        "classifier": node("Classifier"),
        "objective": node("Objective"),
    }
    model, objective = build_model(config, info), build_objective(config, info)
    losses = objective(model(batch), batch.labels)
    losses["total"].backward()
    assert model.classifier.arguments == {"modalities": ("fused",), "num_classes": 4}
    assert model.fusion is not None
    assert model.fusion.arguments == {"modalities": info.modalities}
    assert sorted(objective.arguments) == ["class_counts", "label_names", "modalities"]
    assert all(parameter.grad is not None for parameter in model.projection.parameters())
    assert len({id(module) for module in model.graph.modules() if type(module).__name__ == "Graph"}) == 6


BROKEN = """
from torch import nn


class Wide(nn.Module):
    def forward(self, x, *context):
        return x.repeat(1, 2)


class Silent(nn.Module):
    def forward(self, x, *context):
        return None


class Joint(nn.Module):
    def __init__(self, modalities):
        super().__init__()

    def forward(self, rows, batch):
        return {"fused": sum(rows.values())}
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+gate.text._target_=broken.Wide"], r"Wide was given rows of shape \(14, 16\) and returned \(14, 32\)"),
        (
            ["+denoiser.audio._target_=broken.Silent"],
            r"Silent was given rows of shape \(14, 16\) and returned a NoneType",
        ),
        (["+graph.text._target_=broken.Wide"], "Wide was given rows"),
        (
            ["+fusion.module._target_=broken.Joint"],
            "Joint returned rows of fused, .* text, audio, visual.*joint = True",
        ),
        (["+gate.text.width=3"], "no _target_, only width"),
    ],
)
def test_a_part_that_does_not_keep_its_promise_is_named(
    make_config: Callable[..., dict[str, Any]],
    make_batch: Callable[..., ConversationBatch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    batch = make_batch()
    info = CorpusInfo({m: x.shape[1] for m, x in batch.features.items()}, ("a", "b", "c", "d"), 3, (4, 3, 2, 1))
    with pytest.raises(MercError, match=message):
        build_model(make_config("plugins=[broken]", *overrides), info)(batch)
