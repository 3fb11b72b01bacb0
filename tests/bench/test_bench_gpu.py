"""The comparison of seeds at once, small and on the CPU."""

import json
from pathlib import Path

import pytest

from merc.bench.gpu import bench
from merc.config import compose
from merc.errors import MercError

SMALL = "trainer=cpu hyperparameters.hidden_dim=8 hyperparameters.heads=2 data.dims={text:6,audio:5,visual:4}"


def test_seeds_at_once_are_compared(tmp_path: Path) -> None:
    overrides = ["models=[amb_dsgdn]", "corpora=[iemocap]", "measure=[fp32]", "modes=['null']", "seeds=[1,2]"]
    costs = bench(
        compose([*overrides, "epochs=3", "size=0.05", f"overrides='{SMALL}'", f"out={tmp_path}"], "bench_gpu")
    )
    assert [(cost.seeds, cost.mode, cost.memory) for cost in costs] == [(1, "null", 0), (2, "null", 0)]
    assert all(0 < cost.epoch < cost.whole for cost in costs)
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert [cost["seeds"] for cost in stored["costs"]] == [1, 2]
    first, second = (tmp_path / "gpu.md").read_text().splitlines()[-2:]
    assert f"{costs[1].epoch / costs[0].epoch:.2f}" in second
    assert first.startswith("| amb_dsgdn on iemocap | fp32 | null | 1 |")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpora=[emorynlp]", "corpora names 'emorynlp'"),
        ("measure=[fp8]", "measure names 'fp8'"),
        ("epochs=2", "give more than 2"),
        ("modes=[cudagraphs] overrides='trainer=cpu' size=0.05", "GPU of NVIDIA's"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(MercError, match=message):
        bench(compose([*override.split(), f"out={tmp_path}"], "bench_gpu"))
    assert not list(tmp_path.iterdir())
