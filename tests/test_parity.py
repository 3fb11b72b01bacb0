"""``python -m merc.parity`` passes on the golden files and fails on anything else."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from merc.errors import MercError
from merc.parity import check

Tamper = Callable[[dict[str, Tensor], dict[str, str]], object]


def golden(name: str) -> Path:
    return Path(__file__).parent / "golden" / name


@pytest.fixture
def tampered(tmp_path: Path) -> Callable[[Tamper], Path]:
    """A golden file after a change."""

    def make(change: Tamper) -> Path:
        source = golden("amb_dsgdn_meld_a.safetensors")
        tensors = load_file(source)
        with safe_open(source, framework="pt") as file:
            settings = dict(file.metadata())
        change(tensors, settings)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "t.safetensors", settings)
        return tmp_path / "t.safetensors"

    return make


@pytest.mark.parametrize("operators", ["merc's where there is a compiler", "PyTorch's alone"])
def test_every_golden_file_agrees(golden_files: list[Path], operators: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if operators == "PyTorch's alone":
        monkeypatch.setattr("merc.kernels.loaded", lambda: False)
    assert len(golden_files) == 8
    for path in golden_files:
        report = check(path)
        assert report.passed, (path.name, report)
        expected = {"graphs", "logits", "losses", "gradients", "trajectory"}
        assert set(report.groups) == expected | ({"balancing"} if path.name.startswith("amb") else set())


def test_command_reports_and_succeeds() -> None:
    command = [sys.executable, "-m", "merc.parity", str(golden("amb_dsgdn_iemocap_a.safetensors"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gradients" in done.stdout


def _weights(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name in tensors if name.startswith("weight.")]


def test_every_weight_that_takes_part_is_noticed(tampered: Callable[[Tamper], Path]) -> None:
    names = _weights(load_file(golden("amb_dsgdn_meld_a.safetensors")))
    for name in names[:: len(names) // 12]:
        path = tampered(lambda tensors, _, name=name: tensors[name].flatten()[-1:].add_(0.5))
        try:
            report = check(path)
        except MercError:
            continue
        assert not report.passed, name


@pytest.mark.parametrize(
    "change",
    [
        lambda t, _: t["output.logits.audio"].flatten()[0:1].add_(1e-3),
        lambda t, _: t["output.logits.fused"].fill_(float("nan")),
        lambda t, _: t["output.loss.total"].add_(1e-3),
        lambda t, _: t["grad.gatA.fc.weight"].mul_(1.01),
        lambda t, _: t["trajectory.total_loss"][-1:].add_(1e-3),
        lambda t, _: t["trajectory.final_logits.fused"].mul_(1.01),
        lambda t, _: t["balance.q.base_0.3"][3].add_(0.01),
        lambda t, _: t["graph.intra_speaker"][0, 0, 0].add_(1),
        lambda t, _: t["input.labels"][0, 0].sub_(t["input.labels"][0, 0] - 6),
        lambda t, _: t["input.text"][0, 0].add_(0.1),
        lambda t, _: t.update({"output.extra": torch.zeros(1)}),
        lambda t, _: t.update({"grad.unknown": torch.zeros(1)}),
        lambda t, _: t.pop("grad.gatT.fc.bias"),
        lambda t, _: [t.pop(name) for name in list(t) if name.startswith("balance.q.")],
        lambda _, s: s.update(window="1"),
        lambda _, s: s.update(num_heads="2"),
        lambda _, s: s.update(weight_decay="0.1"),
    ],
)
def test_tampering_is_noticed(tampered: Callable[[Tamper], Path], change: Tamper) -> None:
    assert not check(tampered(change)).passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, _: t.pop("weight.gatT.fc.weight"), r"lacks the tensor 'gatT\.fc\.weight'"),
        (lambda t, _: t.update({"weight.gatT.fc.wait": torch.zeros(1)}), "has no place"),
        (lambda t, _: t.update({"weight.gatT.fc.bias": torch.zeros(1)}), "has shape"),
        (lambda t, _: t["weight.a_a.pos_emb.pe"].add_(1), "sine-cosine"),
        (lambda t, _: t["input.lengths"][0].sub_(1), "disagree"),
        (lambda t, _: t["input.mask"][-1, 0].zero_(), "disagree"),
        (lambda t, _: t["input.speakers"].masked_fill_(t["input.speakers"] < 0, 0), "padding"),
        (lambda _, s: s.pop("window"), "lacks the setting 'window'"),
        (lambda t, _: t.pop("output.logits.text"), r"lacks the tensor 'output\.logits\.text'"),
    ],
)
def test_unusable_files_are_explained(tampered: Callable[[Tamper], Path], change: Tamper, message: str) -> None:
    with pytest.raises(MercError, match=message):
        check(tampered(change))


def test_command_fails_without_a_traceback_on_what_is_no_golden_file(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not at all")
    command = [sys.executable, "-m", "merc.parity", str(tmp_path / "broken.safetensors"), str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("cannot be read") == 2
