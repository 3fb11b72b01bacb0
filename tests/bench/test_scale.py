"""How cost grows: the fit, the stores, the whole command, small."""

import json
import mmap
import subprocess
import sys
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch

from merc.bench.lengths import LengthCost, dialogues_of, exponent, stage
from merc.bench.machine import forget_peak, own_memory, peak_resident, resident
from merc.bench.scale import bench
from merc.bench.sizes import write_repeated
from merc.config import compose, plain
from merc.data.corpora import MELD
from merc.data.store import read_store
from merc.data.synthetic import generate
from merc.errors import MercError

SETTINGS = plain(compose(config_name="bench_scale"))


@pytest.mark.parametrize("power", [1, 1.5, 2])
def test_growth_is_the_power_of_the_length(power: float) -> None:
    lengths = (8, 32, 128, 256, 512)
    costs = [LengthCost(n, 1e-6 * n**power * (1024 // n), memory=0) for n in lengths]
    assert exponent(costs, utterances=1024) == pytest.approx(power)


def test_growth_ignores_short_dialogues_and_needs_two_lengths() -> None:
    costs = [LengthCost(n, seconds, memory=0) for n, seconds in ((8, nan), (16, nan), (32, 1.0), (64, 1.0))]
    assert exponent(costs, utterances=1024) == pytest.approx(1)
    assert exponent(costs[-1:], utterances=1024) is None


def test_every_length_has_the_same_utterances() -> None:
    for length in SETTINGS["lengths"]["of_dialogues"]:
        batch = dialogues_of(length, SETTINGS["lengths"])
        assert set(batch.lengths) == {length}
        assert len(batch.labels) == SETTINGS["lengths"]["utterances"]


@pytest.mark.parametrize("name", SETTINGS["lengths"]["stages"])
def test_stages_are_alone(name: str) -> None:
    small = {**SETTINGS["lengths"], "hidden_dim": 16}
    choice = small["stages"][name]
    model = stage(choice, small)
    assert bool(model.denoiser.branches) == ("denoiser" in choice)
    assert bool(list(model.graph.parameters())) == ("graph" in choice)
    assert model.balancing is None
    windows = {getattr(module, "window", None) for module in model.modules()}
    assert windows == ({None, small["window"]} if name.endswith("window") else {None})


def test_a_repeated_store_holds_the_same_conversations_again_and_again(tmp_path: Path) -> None:
    once = generate(MELD, dims={"text": 3})
    write_repeated(tmp_path / "store", 2, {"corpus": "meld", "dims": {"text": 3}})
    twice = read_store(tmp_path / "store")
    assert twice.lengths == once.lengths * 2
    assert twice.splits == once.splits * 2
    assert torch.equal(twice.features["text"], once.features["text"].repeat(2, 1))
    assert torch.equal(twice.labels, once.labels.repeat(2))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_memory_of_ones_own_is_a_part_of_the_resident_set() -> None:
    before = own_memory()
    if before is None:
        pytest.skip("this system does not tell")
    size = 2**26
    # From the system: what tests before this one have freed may be used again.
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(bytes(size))
        now = own_memory()
        assert now is not None
        assert now - before >= 0.9 * size
        assert now <= resident()


def test_a_peak_is_forgotten() -> None:
    torch.ones(2**25)
    high = peak_resident()
    forget_peak()
    assert peak_resident() <= high


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=0", r"rounds=\[0\]: give whole numbers"),
        ("lengths.of_dialogues=[]", "lengths.of_dialogues"),
        ("sizes.of_data=[0.5]", "sizes.of_data"),
        ("lengths.measure=[GNC]", "Did you mean 'GCN'"),
        ("sizes.corpus=mled", "Did you mean 'meld'"),
    ],
)
def test_mistakes_are_explained(override: str, message: str) -> None:
    with pytest.raises(MercError, match=message):
        bench(compose([override], "bench_scale"))


@pytest.mark.slow
def test_the_command_measures_lengths_and_sizes(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "merc.bench.scale", f"out={tmp_path}", "rounds=1", "lengths.hidden_dim=16"),
        *("lengths.utterances=64", "lengths.of_dialogues=[64,16]", "lengths.measure=[GCN]"),
        *("sizes.of_data=[2,1]", "sizes.dims={text: 4, audio: 4}", "sizes.steps=2"),
        "sizes.overrides=hyperparameters.hidden_dim=16",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads((tmp_path / "scale.json").read_text())
    assert [cost["length"] for cost in results["lengths"]["GCN"]] == [16, 64]
    first, second = results["sizes"]
    assert (first["times"], second["utterances"]) == (1, 2 * first["utterances"])
    assert all(value > 0 for cost in results["sizes"] for value in cost.values() if value is not None)
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    for shown in ("GCN", "13,708", "27,416"):
        assert shown in done.stdout
        assert shown in (tmp_path / "scale.md").read_text()
