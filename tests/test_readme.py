"""Every command of the documentation runs.

Each fenced ``bash`` block is taken apart into commands. Those of one section run one after another in a folder of their
own that holds what a reader would have (see :func:`workspace`); long ones are shrunk by the overrides in ``RUN``, which
come last and so win. A command that no rule here covers fails, so a new one needs its rule.
"""

import csv
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc.config import compose
from merc.data.corpora import MELD
from merc.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/sweeps.md",
    "merc/models/amb_dsgdn/README.md",
    "merc/models/redifu/README.md",
]

# Beginning of a command → what is appended to it. The first that fits counts.
TINY_TRAINING = (
    "trainer.max_epochs=1 trainer.accelerator=cpu trainer.devices=1 "
    "hyperparameters.hidden_dim=16 hyperparameters.heads=4 hyperparameters.fusion_heads=4"
)
RUN = {
    "python -m merc.train": TINY_TRAINING,
    "python -m merc.evaluate": "trainer.accelerator=cpu trainer.devices=1",
    "python -m merc.prepare inspect": "",
    "python -m merc.prepare": "overwrite=true",
    "python -m merc.parity": "",
    "python -m merc.sweep status": "",
    "python -m merc.report": "resamples=50",
    "python -m merc.dashboard": "--dry-run",
}
TINY_SYNTHETIC = "data.size=0.02"

# Beginning of a command that does not run here → why.
ELSEWHERE = {
    "git clone": "needs the network",
    "pip install": "needs the network",
    "cd ": "every section starts in its own folder",
    "python -m merc.train -m hydra/launcher=submitit_slurm": "needs a cluster",
}


def commands_by_section(markdown: str) -> dict[str, list[str]]:
    """Title of a section → the commands of its bash blocks, without comments, continued lines joined."""
    sections: dict[str, list[str]] = {}
    title, inside = "", ""
    for line in markdown.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            inside = "" if inside else line[3:].strip() or "text"
        elif inside == "bash":
            if command := re.sub(r"(^|\s+)#\s.*$", "", line).strip():
                sections.setdefault(title, []).append(command)
        elif not inside and line.startswith("#"):
            title = line.lstrip("# ")
    return sections


def rule(command: str, rules: dict[str, str]) -> str | None:
    """The value of the first beginning that fits, environment variables in front of the command left aside."""
    bare = re.sub(r"^(\w+=\S*\s+)+", "", command)
    return next((value for beginning, value in rules.items() if bare.startswith(beginning)), None)


def runs_here(command: str) -> bool:
    return rule(command, RUN) is not None and rule(command, ELSEWHERE) is None


def shrunk(command: str) -> str:
    """The command with what makes it short appended."""
    extra = [rule(command, RUN) or ""]
    data = re.search(r"\sdata=(\S+)", command)
    if "merc.train" in command and (data is None or "synthetic" in data[1]):
        extra.append(TINY_SYNTHETIC)
    # Shrunk, two commands of a section may be the same run.
    if "merc.train" in command and "resume=true" not in command and "experiment=" not in command:
        extra.append("overwrite=true")
    if "experiment=" in command and " seed=" not in command:
        extra.append("seed=1")
    return " ".join([command, *extra])


DOCUMENTED = [
    (f"{document}: {title}", commands)
    for document in DOCUMENTS
    if (ROOT / document).exists()
    for title, commands in commands_by_section((ROOT / document).read_text(encoding="utf-8")).items()
]
ALL_COMMANDS = sorted({command for _, commands in DOCUMENTED for command in commands})
SECTIONS = [(title, [c for c in commands if runs_here(c)]) for title, commands in DOCUMENTED]


def write_meld(folder: Path) -> None:
    """Annotations as MELD's official files, and a feature table per modality and split."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        ids = [(dialogue, utterance) for dialogue in range(8) for utterance in range(4)]
        names = [f"dia{dialogue}_utt{utterance}" for dialogue, utterance in ids]
        with (folder / f"{split}_sent_emo.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Sr No.", "Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"])
            for i, (dialogue, utterance) in enumerate(ids):
                writer.writerow([i, f"words {i}", f"speaker {i % 3}", MELD.label_names[i % 7], dialogue, utterance])
        np.savez(folder / f"text_{split}.npz", ids=np.array(names), features=random.normal(size=(len(ids), 6)))
        np.savez(folder / f"audio_{split}.npz", ids=np.array(names), features=random.normal(size=(len(ids), 4)))


def write_own(folder: Path) -> None:
    """A corpus of the reader's own: a table of utterances and two of features."""
    folder.mkdir()
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    rows = [(dialogue, position) for dialogue in range(len(splits)) for position in range(3)]
    names = [f"d{dialogue}_u{position}" for dialogue, position in rows]
    with (folder / "utterances.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dialogue", "position", "utterance", "speaker", "label", "split"])
        for name, (dialogue, position) in zip(names, rows, strict=True):
            label = ["calm", "glad", "cross"][(dialogue + position) % 3]
            writer.writerow([dialogue, position, name, "AB"[position % 2], label, splits[dialogue]])
    for modality, dim in {"text": 6, "audio": 4}.items():
        features = np.random.default_rng(dim).normal(size=(len(rows), dim))
        np.savez(folder / f"{modality}.npz", ids=np.array(names), features=features)


def published_pickle(
    path: Path, lengths: dict[Any, int], speakers: list[Any], classes: int, train: list[Any], test: list[Any]
) -> None:
    """The tuple that the field passes on: ids, speakers, labels, four text views, audio, visual, words, splits."""

    def features(dim: int) -> dict[Any, Any]:
        return {d: np.random.default_rng(n).normal(size=(n, dim)).astype("f4") for d, n in lengths.items()}

    def each(value: Callable[[Any, int], Any]) -> dict[Any, list[Any]]:
        return {d: [value(d, i) for i in range(n)] for d, n in lengths.items()}

    who, emotion = each(lambda _, i: speakers[i % len(speakers)]), each(lambda _, i: i % classes)
    ids, words = each(lambda d, i: f"{d}_{i}"), each(lambda _, i: f"words {i}")
    views = [features(6) for _ in range(4)]
    path.write_bytes(pickle.dumps((ids, who, emotion, *views, features(4), features(3), words, train, test)))


def write_pickles(folder: Path) -> None:
    """The published pickles of both datasets, a few dialogues each."""
    iemocap = {"Ses01F_impro01": 6, "Ses02F_impro01": 7, "Ses01M_impro01": 6, "Ses05F_impro01": 6}
    names = list(iemocap)
    published_pickle(folder / "iemocap_features.pkl", iemocap, ["M", "F"], 6, names[:3], names[3:])
    one_hot = [[float(k == i) for k in range(9)] for i in range(3)]
    published_pickle(folder / "meld_features.pkl", {0: 7, 1: 4, 1039: 7, 1153: 7}, one_hot, 7, [0, 1, 1039], [1153])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a reader has: sources, feature stores prepared from them, the checkout's golden tensors."""
    monkeypatch.chdir(tmp_path)
    write_meld(tmp_path / "meld")
    write_own(tmp_path / "mine")
    write_pickles(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for overrides in (
        ["source=meld_csv", "out=stores/meld", "annotations=meld", "features.text=meld/text_*.npz",
         "features.audio=meld/audio_*.npz"],
        ["source=pickle", "corpus=iemocap", "out=stores/iemocap", "path=iemocap_features.pkl"],
        ["source=tables", "out=stores/custom", "utterances=mine/utterances.csv",
         "features.text=mine/text.npz", "features.audio=mine/audio.npz"],
    ):  # fmt: skip
        prepare(compose(overrides, "prepare"))
    return tmp_path


@pytest.fixture
def reader() -> dict[str, str]:
    """Environment variables of somebody who works in the project's environment, without an account anywhere."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_every_command_has_a_rule(command: str) -> None:
    here = rule(command, RUN) is not None or command.startswith("make ")
    assert here or rule(command, ELSEWHERE) is not None, (
        f"'{command}' is in the documentation, and no rule of this test covers it"
    )


@pytest.mark.parametrize("command", [command for command in ALL_COMMANDS if command.startswith("make ")])
def test_make_commands_exist(command: str) -> None:
    done = subprocess.run(["bash", "-c", f"{command} --dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("title", "commands"), [s for s in SECTIONS if s[1]], ids=[t for t, c in SECTIONS if c])
def test_commands_run(title: str, commands: list[str], workspace: Path, reader: dict[str, str]) -> None:
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", shrunk(command)], cwd=workspace, env=reader, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{title}: {shrunk(command)}\n{done.stdout}\n{done.stderr}"


def test_the_readme_has_commands() -> None:
    assert any(title.startswith("README.md") for title, _ in SECTIONS)


def test_commands_are_found() -> None:
    markdown = """
# One
```bash
# a comment
make train   # and why
python -m merc.train \\
  seed=2
```
## Two
```text
python no
```
```
# no title
```
```bash
X=1 python -m merc.parity a#b
```
"""
    assert commands_by_section(markdown) == {
        "One": ["make train", "python -m merc.train    seed=2"],
        "Two": ["X=1 python -m merc.parity a#b"],
    }


def test_commands_are_shrunk() -> None:
    assert shrunk("python -m merc.train data=meld resume=true").endswith(f"data=meld resume=true {TINY_TRAINING}")
    assert shrunk("python -m merc.train seed=2").endswith(f"{TINY_TRAINING} {TINY_SYNTHETIC} overwrite=true")
    assert shrunk("python -m merc.train -m experiment=a").endswith(f"{TINY_TRAINING} {TINY_SYNTHETIC} seed=1")
    assert rule("WANDB_MODE=offline python -m merc.parity x", RUN) == ""
    assert rule("python -m merc.prepare source=tables", RUN) == "overwrite=true"
    assert rule("rm -rf /", RUN | ELSEWHERE) is None
