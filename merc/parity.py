"""python -m merc.parity FILE…: does our model compute what the released one computed?

A golden file (safetensors) holds one case of a released model: hyper-parameters as metadata, inputs, weights and what
the released code made of them. The file decides every size.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merc.balancing import dropout_probabilities
from merc.config import compose, instantiate, plain
from merc.data.conversation import MODALITIES, ConversationBatch, CorpusInfo
from merc.errors import MercError, nearest
from merc.models.build import build_model, build_objective
from merc.models.emotion_model import EmotionModel
from merc.models.graphs.neighbourhood import relation_graphs
from merc.models.released import METHODS, load_released, released_views, tied

ABSOLUTE = 1e-5
GRADIENT_ABSOLUTE, GRADIENT_RELATIVE = 1e-6, 1e-3
PROBABILITY = 1e-6
SETTINGS = ("hidden_dim", "dropout", "window", "learning_rate", "weight_decay")
PROBABILITY_MODALITIES = ("text", "visual", "audio")


@dataclass
class Group:
    """The comparisons of one kind.

    Attributes:
        absolute: largest absolute difference.
        relative: largest difference relative to the largest magnitude of the expected tensor.
        compared: number of tensors.
        failures: names of the tensors that differ by more than the tolerance.
    """

    absolute: float = 0.0
    relative: float = 0.0
    compared: int = 0
    failures: list[str] = field(default_factory=list)

    def compare(self, name: str, ours: Tensor, expected: Tensor, tolerance: Callable[[float], float]) -> None:
        """Compare two tensors; ``tolerance`` maps the largest expected magnitude to the admitted difference."""
        self.compared += 1
        if ours.shape != expected.shape:
            self.failures.append(f"{name} (shape {tuple(ours.shape)}, expected {tuple(expected.shape)})")
            return
        difference = (ours.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
        magnitude = expected.double().abs().max().item() if expected.numel() else 0.0
        self.absolute = max(self.absolute, difference)
        self.relative = max(self.relative, difference / magnitude if magnitude else 0.0)
        # Written so that NaN fails.
        if not difference <= tolerance(magnitude):
            self.failures.append(name)


@dataclass
class Report:
    """The outcome for one file.

    Attributes:
        groups: graphs, logits, losses, gradients, trajectory, balancing.
        uncompared: names of the tensors of the file that nothing was compared with.
    """

    groups: dict[str, Group]
    uncompared: list[str]

    @property
    def passed(self) -> bool:
        """Everything in the file was compared and agrees."""
        return not self.uncompared and all(group.compared and not group.failures for group in self.groups.values())


class Golden:
    """A golden file, keeping count of what has been looked at.

    Args:
        path: the safetensors file.

    Raises:
        MercError: the file cannot be read, or lacks a tensor or setting that is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self.settings: dict[str, str] = file.metadata() or {}
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise MercError(f"{path} cannot be read as a safetensors file: {error}") from error
        self.unused = set(self.tensors)

    def take(self, name: str) -> Tensor:
        """A tensor, marked as used."""
        if name not in self.tensors:
            raise MercError(f"{self.path} lacks the tensor '{name}'.")
        self.unused.discard(name)
        return self.tensors[name]

    def take_all(self, prefix: str) -> dict[str, Tensor]:
        """All tensors under a prefix, which is cut off, marked as used."""
        names = [name for name in self.tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.take(name) for name in names}

    def setting(self, name: str) -> str:
        """A value of the metadata."""
        if name not in self.settings:
            raise MercError(f"{self.path} lacks the setting '{name}' in its metadata.")
        return self.settings[name]


def check(path: Path) -> Report:
    """Compare one golden file with our model of the same method.

    Raises:
        MercError: the file cannot be read, or does not describe a model that merc can build.
    """
    golden = Golden(path)
    batch = _batch(golden)
    config = _config(golden)
    info = _info(golden)
    model = build_model(config, info)
    load_released(model, golden.take_all("weight."))
    groups = {
        "graphs": _graphs(golden, batch, int(golden.setting("window"))),
        **_outputs(golden, model, build_objective(config, info), batch),
        "trajectory": _trajectory(golden, model, config, info, batch),
    }
    if config["balancing"]["policy"] is not None:
        groups["balancing"] = _balancing(golden, config["balancing"]["policy"])
    return Report(groups, uncompared=sorted(golden.unused))


def _config(golden: Golden) -> dict[str, Any]:
    method = golden.setting("model")
    if method not in METHODS:
        raise MercError(
            f"{golden.path} is of the method '{method}'; there are {', '.join(METHODS)}.{nearest(method, METHODS)}"
        )
    choices = [f"model={method}_released", f"data={golden.setting('dataset')}"]
    published = compose(choices).hyperparameters
    heads = int(golden.setting("num_heads"))
    weights = golden.setting("class_weights")
    values = {
        **{name: golden.setting(name) for name in SETTINGS},
        "class_weights": f"[{weights}]" if weights else "none",
        "heads": heads,
        # The released code derives these from the others, with another factor for each corpus.
        "fusion_heads": heads * published.fusion_heads // published.heads,
    }
    return plain(compose([*choices, *(f"hyperparameters.{name}={value}" for name, value in values.items())]))


def _info(golden: Golden) -> CorpusInfo:
    classes = int(golden.setting("num_classes"))
    return CorpusInfo(
        dims={modality: int(golden.setting(f"dim_{modality}")) for modality in MODALITIES},
        label_names=tuple(str(i) for i in range(classes)),
        speaker_slots=int(golden.setting("num_speakers")),
        class_counts=(1,) * classes,
    )


def _batch(golden: Golden) -> ConversationBatch:
    mask = golden.take("input.mask").bool()
    lengths = golden.take("input.lengths")
    speakers, labels = golden.take("input.speakers"), golden.take("input.labels")
    features = {modality: golden.take(f"input.{modality}") for modality in MODALITIES}
    if not mask.equal(torch.arange(mask.shape[1]) < lengths[:, None]):
        raise MercError(f"{golden.path}: input.mask and input.lengths disagree.")
    if (speakers[~mask] != -1).any() or (labels[~mask] != 0).any() or any(x[~mask].any() for x in features.values()):
        raise MercError(f"{golden.path}: the padding of the inputs is not what the format prescribes.")
    return ConversationBatch(
        features={modality: x[mask] for modality, x in features.items()},
        speakers=speakers[mask],
        labels=labels[mask],
        lengths=tuple(lengths.tolist()),
    )


def _graphs(golden: Golden, batch: ConversationBatch, window: int) -> Group:
    group = Group()
    for name, graph in relation_graphs(batch, past=window, future=window).items():
        group.compare(f"graph.{name}", graph.dense(), golden.take(f"graph.{name}"), lambda _: 0.0)
    return group


def _outputs(
    golden: Golden, model: EmotionModel, objective: torch.nn.Module, batch: ConversationBatch
) -> dict[str, Group]:
    logits, losses, gradients = Group(), Group(), Group()
    mask = golden.take("input.mask").bool()
    model.eval().zero_grad()
    prediction = model(batch)
    scores = {**{f"logits.{m}": x for m, x in prediction.unimodal.items()}, "logits.fused": prediction.fused}
    scores["log_prob.fused"] = prediction.fused.log_softmax(-1)
    for name, ours in scores.items():
        logits.compare(f"output.{name}", ours.detach(), golden.take(f"output.{name}")[mask], lambda _: ABSOLUTE)
    ours_losses = objective(prediction, batch.labels)
    for name, loss in ours_losses.items():
        losses.compare(f"output.loss.{name}", loss.detach(), golden.take(f"output.loss.{name}"), lambda _: ABSOLUTE)
    ours_losses["total"].backward()
    expected = golden.take_all("grad.")
    method = golden.setting("model")
    views = released_views(model, method, gradients=True)
    for name in tied(released_views(model, method)):
        # The gradient of a tensor with several names stands under the first.
        views.pop(name)
    for name in expected.keys() - views.keys():
        gradients.failures.append(f"grad.{name} (unknown parameter)")
    for name, ours in views.items():
        # The released code leaves out parameters that get no gradient.
        wanted = expected.get(name, torch.zeros_like(ours))
        gradients.compare(f"grad.{name}", ours, wanted, lambda m: GRADIENT_ABSOLUTE + GRADIENT_RELATIVE * m)
    return {"logits": logits, "losses": losses, "gradients": gradients}


def _trajectory(
    golden: Golden,
    model: EmotionModel,
    config: Mapping[str, Any],
    info: CorpusInfo,
    batch: ConversationBatch,
) -> Group:
    group = Group()
    objective = build_objective(config, info)
    optimizer = instantiate(config["optimizer"], params=[p for p in model.parameters() if p.requires_grad])
    losses = []
    for _ in range(int(golden.setting("trajectory_steps"))):
        optimizer.zero_grad()
        loss = objective(model(batch), batch.labels)["total"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    mask = golden.take("input.mask").bool()
    expected = golden.take("trajectory.total_loss")
    group.compare("trajectory.total_loss", torch.tensor(losses, dtype=torch.float64), expected, lambda _: ABSOLUTE)
    with torch.no_grad():
        final = model(batch).fused
    expected = golden.take("trajectory.final_logits.fused")[mask]
    group.compare("trajectory.final_logits.fused", final, expected, lambda _: ABSOLUTE)
    return group


def _balancing(golden: Golden, policy_node: Mapping[str, Any]) -> Group:
    group = Group()
    policy = instantiate({**policy_node, "scale": float(golden.setting("balance_scale"))})
    scores = golden.take("balance.performance." + "_".join(PROBABILITY_MODALITIES))
    for name, expected in golden.take_all("balance.q.base_").items():
        ours = dropout_probabilities(scores, **{**policy.rule, "base_probability": float(name)})
        group.compare(f"balance.q.base_{name}", ours, expected, lambda _: PROBABILITY)
    return group


def print_report(path: Path, report: Report, console: Console) -> None:
    """One table per file, then whatever failed, by name."""
    table = Table(title=path.name, title_justify="left")
    for column in ("group", "tensors", "max |Δ|", "max |Δ| / max |x|", ""):
        table.add_column(column, justify="left" if column in ("group", "") else "right")
    for name, group in report.groups.items():
        verdict = "[red]differs[/]" if group.failures or not group.compared else "[green]agrees[/]"
        table.add_row(name, str(group.compared), f"{group.absolute:.1e}", f"{group.relative:.1e}", verdict)
    console.print(table)
    for name, group in report.groups.items():
        for failure in group.failures:
            console.print(f"[red]{name}[/]: {failure} exceeds the tolerance", highlight=False)
    for name in report.uncompared:
        console.print(f"[red]{path.name}[/]: {name} could not be compared", highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the files named on the command line; exit 1 unless all pass."""
    paths = [Path(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    console = Console()
    if not paths or paths[0].name in ("--help", "-h"):
        console.print("Usage: python -m merc.parity FILE…\n\nCompares merc's models with golden files (safetensors).")
        sys.exit(0 if paths else 2)
    passed = True
    for path in paths:
        try:
            report = check(path)
        except MercError as error:
            console.print(f"[red]{path.name}[/]: {error}", highlight=False)
            passed = False
            continue
        print_report(path, report, console)
        passed = passed and report.passed
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
