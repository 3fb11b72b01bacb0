"""Short forms of overrides, and what a command offers to choose from."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hydra import initialize_config_dir, initialize_config_module
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from torch import nn

from merc.cli import offered_groups
from merc.config import CONFIG_MODULE, check_plugins, choices, compose, expand_choices, instantiate, locate, typed
from merc.errors import MercError

CONF = Path(__file__).resolve().parents[1] / "conf"


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


def parts(node: Any, prefix: str = "") -> dict[str, Any]:
    """Key → class of everything below a node that is built; what is chosen for no modality is left out."""
    if not isinstance(node, dict):
        return {}
    own = {prefix: node["_target_"]} if node.get("_target_") else {}
    return own | {
        name: target for key, value in node.items() for name, target in parts(value, f"{prefix}.{key}").items()
    }


@pytest.mark.parametrize("model", ["amb_dsgdn_released", "redifu", "redifu_released"])
def test_what_is_chosen_for_a_stage_replaces_all_that_the_model_chose_there(model: str) -> None:
    stages = ("denoiser", "graph", "gate", "balancing", "fusion", "classifier", "objective")
    offered = {
        stage: sorted(file.stem for file in (CONF / stage).glob("*.yaml") if not file.stem.startswith("_"))
        for stage in stages
    }
    for index in range(max(map(len, offered.values()))):
        chosen = [f"{stage}={names[index % len(names)]}" for stage, names in offered.items()]
        ours, usual = (compose([f"model={name}", *chosen]) for name in (model, "amb_dsgdn"))
        for stage in stages:
            assert parts(OmegaConf.to_container(ours[stage])) == parts(OmegaConf.to_container(usual[stage])), chosen


def test_a_choice_that_nobody_has_names_those_there_are() -> None:
    with pytest.raises(MissingConfigException, match="recurrent"):
        compose(["denoiser.text=recurent"])


def test_offered_are_the_choices_of_the_commands_groups_without_shared_files() -> None:
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        text = offered_groups({"data": "meld", "graph/module@graph.text": "gcn", "hydra/help": "train", "debug": None})
    assert text.splitlines() == [
        "data: custom, iemocap, meld, synthetic_iemocap, synthetic_meld",
        "debug: fast, profiler",
        "graph/module: differential, differential_released, gat, gcn, none, relational_gat",
    ]


def test_offered_are_the_users_own_choices_too(tmp_path: Path) -> None:
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser" / "own.yaml").touch()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert offered_groups({"denoiser": "own", "graph": "none"}) == "denoiser: own"


@pytest.mark.parametrize("key", ["denoiser.text", "graph.default"])
def test_a_long_form_is_shown_as_the_user_typed_it(key: str) -> None:
    (long,) = expand_choices([f"{key}=none"])
    assert typed(long.removesuffix("=none")) == key
    assert typed(key) == key


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "lies outside"),
        ("torch.os.system", "neither a class nor a function"),
        ("torch.os.popen", r"\(os\.popen\), which lies outside"),
        ("merc.config.find_spec", "lies outside"),
        ("merc.files.Path", r"\(pathlib\.Path\), which lies outside.*plugins=\[pathlib\]"),
        ("merc.config", "neither a class nor a function|cannot be imported"),
        ("torch.nn.Nothing", "cannot be imported"),
    ],
)
def test_only_what_trusted_packages_define_is_called(target: str, message: str) -> None:
    with pytest.raises(MercError, match=message):
        locate({"_target_": target})


def test_what_is_shown_elsewhere_in_a_trusted_package_is_found() -> None:
    assert locate({"_target_": "lightning.Trainer"}) is L.Trainer
    assert locate({"_target_": "merc.files.Path"}, ["pathlib"]) is Path


@pytest.mark.parametrize("target", ["torch.optim.Adam", "merc.files.write_text"])
def test_only_the_kind_that_is_needed_is_built(target: str) -> None:
    with pytest.raises(MercError, match="no Module"):
        instantiate({"_target_": target}, (), nn.Module)


@pytest.mark.parametrize("name", ["nope", "no package"])
def test_a_plugin_that_python_does_not_find_is_refused(name: str) -> None:
    with pytest.raises(MercError, match="Python finds no package"):
        check_plugins([name])
