"""The Makefile explains itself, and continuous integration runs what the documents say."""

import re
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()  # type: ignore[index]


def make(*arguments: str) -> str:
    done = subprocess.run(["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_lists_every_target() -> None:
    assert make() == make("help")
    assert [line.split()[1] for line in make("help").splitlines()] == TARGETS
    described = re.findall(r"^([a-z-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split(maxsplit=2)[1:] for line in make("help").splitlines()] == [list(each) for each in described]
    assert any(":" in description for _, description in described)


def test_environment_is_created_once(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    assert "--constraint constraints.txt --editable" in make("-n", "train", f"VENV={environment}")
    environment.mkdir()
    (environment / ".merc-installed").touch()
    assert "pip" not in make("-n", "train", f"VENV={environment}")


def test_paper_runs_every_experiment_smallest_first(tmp_path: Path) -> None:
    specifications = {
        str(path.relative_to(ROOT / "experiments").with_suffix("")): OmegaConf.load(path).experiment
        for path in (ROOT / "experiments").rglob("*.yaml")
    }
    runs = {name: len(node.variants) * len(node.seeds) for name, node in specifications.items()}
    commands = make("-n", "paper", f"VENV={tmp_path}", "DATA=meld synthetic_iemocap", "ARGS=trainer=smoke seed=7")
    sweeps = dict(
        re.findall(r"merc\.train -m data=(\S+) run_root=runs/smoke\s.*?experiment=(\S+) trainer=smoke", commands, re.S)
    )
    assert sweeps.keys() == {"meld", "synthetic_iemocap"}
    for data, names in sweeps.items():
        started, (other,) = names.split(","), {"meld", "iemocap"} - {data.removeprefix("synthetic_")}
        assert sorted(started) == sorted(name for name in runs if not name.endswith(f"_{other}"))
        assert [runs[name] for name in started] == sorted(runs[name] for name in started)
    disturbed = [name for name, node in specifications.items() if node.kind == "robustness"]
    (evaluated,) = re.findall(r'merc\.evaluate "sweep=\[(\S+)\]" run_root=runs/smoke trainer=smoke$', commands, re.M)
    assert sorted(evaluated.split(",")) == sorted(disturbed)
    assert commands.splitlines()[-1].endswith("merc.report run_root=runs/smoke")


def test_interpreter_environment_and_constraints_can_be_chosen(tmp_path: Path) -> None:
    commands = make("-n", "test", f"VENV={tmp_path}", "PYTHON=python3.99", "CONSTRAINTS=")
    assert f"python3.99 -m venv {tmp_path}" in commands
    assert "--constraint" not in commands


@pytest.mark.parametrize(("target", "document"), [("lint", "CONTRIBUTING.md"), ("test", "README.md")])
def test_continuous_integration_runs_what_the_documents_say(target: str, document: str) -> None:
    assert f"make {target}" in (ROOT / ".ci" / "run").read_text()
    assert f"make {target}" in (ROOT / document).read_text()


def test_pre_commit_needs_no_other_repository() -> None:
    repositories = OmegaConf.load(ROOT / ".pre-commit-config.yaml").repos
    assert {repository["repo"] for repository in repositories} == {"local"}
    hooks = [hook["entry"].split() for repository in repositories for hook in repository["hooks"]]
    assert all(program == "make" and target in TARGETS for program, target in hooks)
