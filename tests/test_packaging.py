"""What is installed is whole: packages, configuration, requirements, and the wheel on its own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from merc.config import CONFIG_MODULE, compose, plain

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

COMMANDS = sorted(path.stem for path in CONF.glob("*.yaml"))
NEEDED = {"prepare": ["source=tables"]}
CHOICES = sorted(
    (path.relative_to(CONF).parts[0], "/".join(path.relative_to(CONF).with_suffix("").parts[1:]))
    for path in CONF.glob("*/**/*.yaml")
    if not path.name.startswith("_") and path.relative_to(CONF).parts[0] != "hydra"
)


@cache
def groups_of(command: str) -> dict[str, str]:
    """Folder of a group → how a command overrides its choice (`published` → `published@hyperparameters`)."""
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        config = hydra_compose(command, overrides=NEEDED.get(command, []), return_hydra_config=True)
    return {group.split("@")[0]: group for group in config.hydra.runtime.choices}


def fill(config: DictConfig) -> None:
    """Give a value to each key that the user must set."""
    for key in config:
        if OmegaConf.is_missing(config, key):
            config[key] = "the user's"
        elif not OmegaConf.is_interpolation(config, str(key)) and isinstance(config[key], DictConfig):
            fill(config[key])


def test_every_folder_with_python_files_is_an_installed_package() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "merc").rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"merc.conf", "merc.conf.experiment"}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(expected)


def test_every_package_has_an_init_file() -> None:
    assert [str(p.parent) for p in (ROOT / "merc").rglob("*.py") if not (p.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize("script", sorted(PROJECT["project"]["scripts"]))
def test_console_scripts_exist(script: str) -> None:
    (entry,) = distribution("merc").entry_points.select(group="console_scripts", name=script)
    assert entry.value == PROJECT["project"]["scripts"][script]
    assert callable(entry.load())


def test_configuration_is_importable() -> None:
    assert files(CONFIG_MODULE).joinpath("train.yaml").is_file()


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_configuration_file_parses(path: Path) -> None:
    assert isinstance(OmegaConf.load(path), DictConfig)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_resolves(group: str, choice: str) -> None:
    commands = [command for command in COMMANDS if group in groups_of(command)]
    assert commands, f"no command uses the group {group}"
    for command in commands:
        override = f"{groups_of(command)[group]}={choice}"
        needed = [start for start in NEEDED.get(command, []) if not start.startswith(f"{group}=")]
        config = compose([*needed, override], command)
        fill(config)
        plain(config)


def pinned() -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}


def requirements_of(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """Requirements of an installed distribution that apply to this machine."""
    for requirement in map(Requirement, distribution(name).requires or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement


def test_constraints_pin_the_project_and_all_that_it_pulls_in() -> None:
    versions = pinned()
    extras = [text for group in PROJECT["project"]["optional-dependencies"].values() for text in group]
    waiting = [Requirement(text) for text in [*PROJECT["project"]["dependencies"], *extras]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        node = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        # CUDA builds of torch bring, and pin themselves, what other machines do not have.
        if node in seen or node[0].startswith(("nvidia-", "cuda-", "triton")):
            continue
        assert node[0] in versions, f"{requirement} is not pinned"
        assert requirement.specifier.contains(versions[node[0]], prereleases=True), requirement
        seen.add(node)
        waiting += requirements_of(*node)
    assert {name for name, _ in seen} == set(versions)


def test_constraints_name_versions_only() -> None:
    assert not re.search(r"://|--|\s@\s|\+", "\n".join(f"{n}=={v}" for n, v in pinned().items()))


def test_compromised_releases_are_excluded() -> None:
    (lightning,) = (r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == "lightning")
    assert not lightning.specifier.contains("2.6.2")
    assert not lightning.specifier.contains("2.6.3")
    assert lightning.specifier.contains(pinned()["lightning"])


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    # From a copy: setuptools leaves a build folder behind whose old files would end up in the wheel.
    source = tmp_path / "source"
    for name in ("merc", "conf", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = tmp_path / "dist"
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source))
    (path,) = built.glob("merc-*.whl")
    return path


def pip(python: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "--quiet", *arguments]
    subprocess.run(command, check=True)


@pytest.mark.slow
def test_wheel_is_complete_and_trains_on_its_own(wheel: Path, tmp_path: Path) -> None:
    shipped = [path for path in (ROOT / "merc").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in shipped}
    expected |= {f"merc/{path.relative_to(ROOT)}" for path in CONF.rglob("*.yaml")} | {"merc/conf/__init__.py"}
    experiments = [*(ROOT / "experiments").rglob("*.yaml"), ROOT / "experiments/__init__.py"]
    expected |= {f"merc/conf/experiment/{path.relative_to(ROOT / 'experiments')}" for path in experiments}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())

    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip(str(python), "install", "--no-deps", "--no-index", str(wheel))
    # The dependencies are those of this environment; its own editable merc is not found by way of a .pth line.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV", "PYTEST"))}
    tiny = ["data.size=0.02", "hyperparameters.hidden_dim=16", "trainer.accelerator=cpu", "run_dir=run"]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(python), *arguments], cwd=elsewhere, env=variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert Path(run("-c", "import merc; print(merc.__file__)").strip()).is_relative_to(environment)
    assert "weighted_f1" in run("-m", "merc.train", "data=synthetic_meld", "trainer.max_epochs=1", *tiny)
    assert (elsewhere / "run" / "metrics.json").is_file()
