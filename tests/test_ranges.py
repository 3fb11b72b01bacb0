"""Numbers of the configuration that cannot be meant are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merc.config import CONFIG_MODULE, compose, plain
from merc.errors import MercError
from merc.ranges import COUNTS, DISTANCES, PROBABILITIES, refuse_out_of_range
from merc.train import train


@pytest.mark.parametrize(
    "override",
    [
        "hyperparameters.hidden_dim=0",
        "hyperparameters.heads=0",
        "hyperparameters.max_epochs=0",
        "hyperparameters.annealing_epochs=0",
        "trainer.max_epochs=0",
        "hyperparameters.batch_size=2.5",
        "hyperparameters.window=1.5",
        "hyperparameters.execute_probability=7",
        "hyperparameters.dropout=-0.1",
        "data.evaluation_batch_size=1.5",
        "data.speaker_slots=0",
        "denoiser.default.layers=0",
        "seed=-1",
        "seed=true",
    ],
)
def test_the_key_and_what_is_needed_are_named(override: str, tmp_path: Path) -> None:
    with pytest.raises(MercError, match=f"^{override.split('=')[0]}=.*: give a "):
        train(compose([override, f"run_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["hyperparameters.window=0", "hyperparameters.dropout=0", "graph.future=0"])
def test_limits_are_inside(override: str, make_config: Callable[..., dict[str, Any]]) -> None:
    refuse_out_of_range(make_config(override))


@pytest.mark.parametrize("model", ["amb_dsgdn", "amb_dsgdn_released", "redifu", "redifu_released"])
@pytest.mark.parametrize("data", ["synthetic_meld", "synthetic_iemocap", "custom"])
def test_published_values_are_in_range(model: str, data: str) -> None:
    refuse_out_of_range(plain(compose([f"model={model}", f"data={data}"])))


def test_a_part_of_the_users_own_may_mean_something_else_by_a_name(make_config: Callable[..., dict[str, Any]]) -> None:
    own = {"denoiser": {"default": {"_target_": "mine.Denoiser", "layers": [4, 2]}}}
    refuse_out_of_range(make_config() | own | {"plugins": ["mine"]})
    with pytest.raises(MercError, match="layers"):
        refuse_out_of_range(make_config() | own)


def test_every_name_is_one_of_the_configuration() -> None:
    folder = Path(__import__(CONFIG_MODULE, fromlist=["x"]).__file__).parent
    text = "\n".join(path.read_text() for path in folder.rglob("*.yaml"))
    assert all(f"{name}: " in text for name in COUNTS | DISTANCES | PROBABILITIES)
