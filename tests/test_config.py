"""Short forms of overrides, and what a command offers to choose from."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir, initialize_config_module
from hydra.errors import MissingConfigException

from merc.cli import offered_groups
from merc.config import CONFIG_MODULE, choices, compose, expand_choices


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("denoiser.text=recurrent", "denoiser/module@denoiser.text=recurrent"),
        ("graph.default=gcn", "graph/module@graph.default=gcn"),
        ("denoiser.audio=transformer,recurrent", "denoiser/module@denoiser.audio=transformer,recurrent"),
        ("denoiser.text=one_of_the_users", "denoiser/module@denoiser.text=one_of_the_users"),
        ("+denoiser.gaze=recurrent", "+denoiser/module@denoiser.gaze=recurrent"),
    ],
)
def test_a_choice_for_one_modality_has_a_short_form(short: str, long: str) -> None:
    assert expand_choices([short]) == [long]


@pytest.mark.parametrize(
    "override",
    [
        "denoiser=recurrent",
        "denoiser.text.layers=2",
        "graph.window=5",
        "+graph.window=5",
        "fusion.text=none",
        "data.split=merged",
        "--config-dir",
    ],
)
def test_everything_else_passes_unchanged(override: str) -> None:
    assert expand_choices([override]) == [override]


def test_choices_are_those_of_every_group() -> None:
    chosen = choices(["graph=gcn", "denoiser.visual=recurrent"])
    assert (chosen["graph"], chosen["graph/module@graph.default"]) == ("gcn", "gcn")
    assert chosen["denoiser/module@denoiser.visual"] == "recurrent"
    assert "denoiser/module@denoiser.audio" not in chosen


def test_a_choice_that_nobody_has_names_those_there_are() -> None:
    with pytest.raises(MissingConfigException, match="recurrent"):
        compose(["denoiser.text=recurent"])


def test_offered_are_the_choices_of_the_commands_groups_without_shared_files() -> None:
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        text = offered_groups({"data": "meld", "graph/module@graph.text": "gcn", "hydra/help": "train", "debug": None})
    assert text.splitlines() == [
        "data: custom, iemocap, meld, synthetic_iemocap, synthetic_meld",
        "debug: fast",
        "graph/module: differential, differential_released, gcn, none, relational_gat",
    ]


def test_offered_are_the_users_own_choices_too(tmp_path: Path) -> None:
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser" / "own.yaml").touch()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert offered_groups({"denoiser": "own", "graph": "none"}) == "denoiser: own"
