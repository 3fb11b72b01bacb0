"""Weights of the classes in the loss."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from merc.errors import MercError, nearest

ClassWeights = str | Mapping[str, float] | Sequence[float]


def _from_yaml(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(text))


def _from_csv(text: str) -> dict[str, str]:
    return {row["label"]: row["weight"] for row in csv.DictReader(io.StringIO(text))}


READERS: dict[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": _from_yaml, ".csv": _from_csv}


def resolve_weights(given: ClassWeights, class_counts: Sequence[int], label_names: Sequence[str]) -> Tensor | None:
    """(C,) weights of the classes; None: all the same.

    Args:
        given: ``none``; ``inverse_frequency``: N/n_c over the training split, never over test labels; the path of a
            file, see :func:`read_weights`; label → weight; or C numbers.
        class_counts: n_c, utterances of each class in the training split.
        label_names: the C classes, in id order.

    Raises:
        MercError: ``given`` is something else, or does not give every class a positive weight.
    """
    if given == "none":
        return None
    if given == "inverse_frequency":
        counts = torch.tensor(class_counts, dtype=torch.float64)
        # A class without training utterances never occurs in the training loss; 1 keeps its weight finite.
        return (counts.sum() / counts.clamp_min(1)).float()
    if not isinstance(given, str):
        return _in_order(given, label_names, "objective.class_weights")
    if names_a_file(given):
        return _in_order(read_weights(Path(given)), label_names, given)
    raise MercError(
        f"objective.class_weights={given} must be none, inverse_frequency, {len(label_names)} numbers, label: weight "
        f"pairs or a file of these ({', '.join(READERS)}).{nearest(given, ('none', 'inverse_frequency'))}"
    )


def names_a_file(given: object) -> bool:
    """Whether class weights are the path of a file."""
    return isinstance(given, str) and Path(given).suffix in READERS


def read_weights(path: Path) -> dict[str, Any]:
    """Label → weight, from a mapping in JSON or YAML, or from CSV with the columns ``label`` and ``weight``.

    Raises:
        MercError: there is no such file, or it holds something else.
    """
    try:
        content = READERS[path.suffix](path.read_text(encoding="utf-8-sig"))
        return {str(label): weight for label, weight in content.items()}
    except OSError as error:
        raise MercError(f"The class weights {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        raise MercError(
            f"{path} holds no class weights. Write label: weight pairs in JSON or YAML, or CSV with the columns label "
            f"and weight. ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


def _in_order(weights: Mapping[str, Any] | Sequence[Any], label_names: Sequence[str], where: str) -> Tensor:
    """The weights as (C,) numbers in the order of the classes."""
    if isinstance(weights, Mapping):
        if unknown := [label for label in weights if label not in label_names]:
            raise MercError(
                f"{where} weighs '{unknown[0]}', which is no class of the data ({', '.join(label_names)})."
                f"{nearest(str(unknown[0]), label_names)}"
            )
        if missing := [label for label in label_names if label not in weights]:
            raise MercError(f"{where} has no weight for {', '.join(missing)}.")
        weights = [weights[label] for label in label_names]
    if len(weights) != len(label_names):
        raise MercError(f"{where} has {len(weights)} weights for {len(label_names)} classes: {', '.join(label_names)}.")
    return torch.tensor([_positive(weight, label, where) for weight, label in zip(weights, label_names, strict=True)])


def _positive(weight: Any, label: str, where: str) -> float:
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise MercError(f"{where} gives {label} the weight {weight}: it must be a positive number.")
    return number
