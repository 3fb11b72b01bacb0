"""Commands end a user's mistake in one message; they keep the traceback of a bug."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from merc import cli
from merc.errors import INTERRUPTED, MercError

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> Callable[..., tuple[int, str]]:
    """Run a job as a command; returns its exit status and what it wrote to stderr."""

    def run(job: Callable[[DictConfig], Any], *arguments: str, config_name: str = "train") -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        GlobalHydra.instance().clear()
        try:
            cli.run(job, config_name)
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def nothing(cfg: DictConfig) -> None:
    """A job that succeeds."""


def user_mistake(cfg: DictConfig) -> None:
    raise MercError("Something is wrong in x. Mend it.")


def bug(cfg: DictConfig) -> None:
    raise KeyError("a bug")


def test_a_job_gets_its_configuration(command: Command) -> None:
    seeds: list[int] = []
    assert command(lambda cfg: seeds.append(cfg.seed), "seed=7") == (0, "")
    assert seeds == [7]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["optimzer.lr=1"], "Did you mean 'optimizer.lr'?"),
        (["optimzer=adamw"], "Did you mean 'optimizer'?"),
        (["hyperparameters.windw=3"], "Did you mean 'hyperparameters.window'?"),
        (["data=synthetic_iemocap", "data.sise=1"], "Did you mean 'data.size'?"),
        (["model=amb_dsgd"], "Did you mean 'amb_dsgdn'?"),
        (["trainer=cpuu"], "Did you mean 'cpu'?"),
        (["+hyperparameters.windo=3"], "Did you mean 'hyperparameters.window'?"),
        (["+nobody_reads_this=3"], "Nothing reads the added key 'nobody_reads_this'"),
        (["denoiser.text=transformer", "denoiser.text.layers=two"], "denoiser.text.layers=two is not a whole number"),
        (["seed=many"], "seed=many is not a whole number"),
        (["seed=true"], "seed=True is not a whole number"),
        (["hyperparameters.batch_size=2.5"], "hyperparameters.batch_size=2.5 is not a whole number"),
        (["data.evaluation_batch_size=1.5"], "is not a whole number"),
        (["data.inertia=true"], "is not a number"),
        (["graph.txt=gcn"], "no key 'graph.txt'. Did you mean 'graph.text'?"),
        (["denoiser.vidual=none"], "no key 'denoiser.vidual'. Did you mean 'denoiser.visual'?"),
        (["resume=maybe"], "resume=maybe is not true or false"),
        (["data.modalities=text"], "is not a list"),
        (["data.split=5"], "data.split=5 is not text, which is needed there. The default is data.split=official."),
        (["run_dir=[a]"], "run_dir=['a'] is not a path"),
        (["run_root=null"], "run_root=None is not a path"),
        (["~graph"], "graph=none"),
        (["seed"], "'seed' cannot be read"),
        (["seed=[1"], "'seed=[1' cannot be read"),
    ],
)
def test_a_mistake_in_the_configuration_is_explained(command: Command, arguments: list[str], hint: str) -> None:
    status, message = command(nothing, *arguments)
    assert status == 1
    assert hint in message
    assert message.startswith("Error: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["logger=null"], "logger=null is no choice of 'logger' (none, tensorboard, wandb). Did you mean 'none'?"),
        (["scheduler=null"], "scheduler=null is no choice of 'scheduler' (cosine, none). Did you mean 'none'?"),
        (["gate=false"], "gate=false is no choice of 'gate' (none, sigmoid). Did you mean 'none'?"),
        (["gate=0"], "gate=0 is no choice of 'gate' (none, sigmoid). Did you mean 'none'?"),
        (["gate.text=null"], "gate.text=null is no choice of 'gate.text' (none, sigmoid). Did you mean 'none'?"),
        (["gate.text=none,null", "-m"], "gate.text=null is no choice of 'gate.text' (none, sigmoid). Did you mean"),
        (["logger=none,null", "-m"], "logger=null is no choice of 'logger' (none, tensorboard, wandb). Did you mean"),
        (["debug=true"], "debug=true is no choice of 'debug' (fast, profiler). Name one of them, or leave it out"),
        (["debug=null"], "debug=null is no choice of 'debug' (fast, profiler). Name one of them, or leave it out"),
        (["experiment=null"], "experiment=null is no choice of 'experiment' (amb_dsgdn/"),
        (["model=1"], "model=1 is no choice of 'model' (amb_dsgdn, amb_dsgdn_released, redifu, redifu_released)."),
        (["data=1.5"], "data=1.5 is no choice of 'data' (custom, iemocap, meld, "),
    ],
)
def test_what_is_no_name_is_no_choice_of_a_group(command: Command, arguments: list[str], message: str) -> None:
    status, err = command(nothing, *arguments)
    assert (status, len(err.splitlines())) == (1, 1)
    assert err.startswith(f"Error: {message}")


@pytest.mark.parametrize("argument", ["gate=[none]", "~logger", "denoiser.text=none", "run_dir=null", "compile=null"])
def test_what_may_be_no_name_is_left_to_hydra(argument: str) -> None:
    cli.refuse_no_choices([argument, "seed=[1"])


@pytest.mark.parametrize(
    ("argument", "config_name", "advice"),
    [
        ("seed=1,2", "train", "Add -m to train one run for each, or write 'seed=[1,2]' for a list."),
        ("data.modalities=text,audio", "evaluate", "Write 'data.modalities=[text,audio]' for a list."),
        ("model=redifu,amb_dsgdn", "train", "Add -m to train one run for each."),
        ("denoiser.text=none,recurrent", "train", "Add -m to train one run for each."),
        ("data=meld,iemocap", "prepare", "Give one of them."),
    ],
)
def test_several_values_without_a_multirun_are_explained(
    command: Command, argument: str, config_name: str, advice: str
) -> None:
    message = f"Error: {argument} is several values. {advice}\n"
    assert command(nothing, argument, config_name=config_name) == (1, message)


@pytest.mark.parametrize(
    "argument",
    [
        "+optimizer.amsgrad=true",
        "+trainer.limit_train_batches=2",
        "debug=fast",
        "~optimizer.weight_decay",
        "seed=2",
        "run_dir=null",
        'data.split="5"',
        "trainer.precision=32",
    ],
)
def test_valid_overrides_are_accepted(command: Command, argument: str) -> None:
    assert command(nothing, argument) == (0, "")


def test_an_added_key_that_an_interpolation_reads_is_accepted(command: Command) -> None:
    assert command(nothing, "+hyperparameters.rate=0.1", "optimizer.lr=${hyperparameters.rate}") == (0, "")


def test_a_path_with_equals_signs_needs_no_quotes(command: Command) -> None:
    paths: list[str] = []
    command(lambda cfg: paths.append(cfg.run_dir), "run_dir=runs/x/seed=1")
    assert paths == ["runs/x/seed=1"]


@pytest.mark.parametrize("key", ["run_dir", "run_root", "ckpt", "out"])
@pytest.mark.parametrize("name", ["5", "-1", "2024_01", "1e3", ".5", "true", "NaN", "2024-01", "a5", "5/a"])
def test_the_name_of_a_folder_may_look_like_a_number(command: Command, key: str, name: str) -> None:
    paths: list[str] = []
    assert command(lambda cfg: paths.append(cfg[key]), f"{key}={name}", config_name="evaluate") == (0, "")
    assert paths == [name]


def test_the_name_of_a_folder_may_look_like_a_number_in_a_multirun(command: Command) -> None:
    paths: list[str] = []
    assert command(lambda cfg: paths.append(cfg.run_root), "run_root=2024_01", "seed=1,2", "--multirun") == (0, "")
    assert paths == ["2024_01", "2024_01"]


def test_a_mistake_of_the_user_is_one_line(command: Command) -> None:
    assert command(user_mistake) == (1, "Error: Something is wrong in x. Mend it.\n")


def test_verbose_shows_the_traceback(command: Command) -> None:
    status, message = command(user_mistake, "hydra.verbose=true")
    assert status == 1
    assert "Traceback" in message
    assert message.endswith("Error: Something is wrong in x. Mend it.\n")


def test_a_bug_keeps_its_traceback(command: Command) -> None:
    status, message = command(bug)
    assert status == 1
    assert "Traceback" in message
    assert "in bug" in message


def test_an_interrupt_ends_in_130(command: Command) -> None:
    def interrupted(cfg: DictConfig) -> None:
        raise KeyboardInterrupt("Stopped. Go on.")

    assert command(interrupted) == (INTERRUPTED, "Stopped. Go on.\n")


def test_the_other_jobs_of_a_multirun_still_run(command: Command) -> None:
    ran: list[int] = []

    def second_fails(cfg: DictConfig) -> None:
        ran.append(cfg.seed)
        if cfg.seed == 2:
            raise MercError("No second run. Leave it out.")

    summary = "Error: 1 of 3 jobs failed. The same command tries them again.\n"
    assert command(second_fails, "seed=1,2,3", "--multirun") == (1, f"Error: No second run. Leave it out.\n{summary}")
    assert ran == [1, 2, 3]


def test_help_explains_groups_and_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.run(nothing, "train")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("python -m merc.train", "denoiser: ", "hidden_dim: 512", "resume: false"):
        assert part in text
