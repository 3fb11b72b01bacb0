"""``python -m merc.models``: every model configuration with its size, its cost and the parts it is made of."""

import argparse
from collections.abc import Iterable, Mapping
from importlib.resources import files

from rich.console import Group
from rich.table import Table

from merc.config import CONFIG_MODULE, choices, compose, plain
from merc.data.conversation import MODALITIES
from merc.data.corpora import CORPORA
from merc.models.costs import flops_per_utterance, published_batches, published_model
from merc.models.emotion_model import count_parameters
from merc.reporting.tables import show

STAGES = ("denoiser", "graph", "gate", "balancing", "fusion", "classifier", "objective")

FOOTNOTE = (
    "Parameters include frozen ones. MFLOPs: millions of floating-point operations of a forward pass without dropout, "
    "per utterance; matrix products and convolutions are counted, a multiplication with its addition as two, norms, "
    "softmax, activations and look-ups not. The batches have the published batch size and dialogues as long as those "
    "of the test split; products with padding, inside attention or wherever model.pad_dialogues=true, count."
)


def main() -> None:
    """The command."""
    argparse.ArgumentParser(prog="python -m merc.models", description=FOOTNOTE).parse_args()
    show(Group(overview(model_names()), FOOTNOTE))


def model_names() -> list[str]:
    """The choices of ``model=…``."""
    return sorted(entry.name.removesuffix(".yaml") for entry in (files(CONFIG_MODULE) / "model").iterdir())


def overview(models: Iterable[str]) -> Table:
    """One row per model: parameters and FLOPs on the published shape of each corpus, and the choice of every stage.

    Args:
        models: choices of ``model=…``.
    """
    table = Table("model", show_lines=True)
    for quantity in ("parameters", "MFLOPs"):
        for corpus in CORPORA:
            table.add_column(f"{quantity}\n{corpus}", justify="right")
    table.add_column("parts")
    for model in models:
        parts = parts_of(choices([f"model={model}"]), MODALITIES)
        table.add_row(model, *_costs(model), "\n".join(f"{stage}: {part}" for stage, part in parts.items()))
    return table


def _costs(name: str) -> list[str]:
    parameters, flops = [], []
    for corpus in CORPORA.values():
        config = plain(compose([f"model={name}", f"data=synthetic_{corpus.name}"]))
        model = published_model(config, corpus)
        batches = published_batches(corpus, config["data"]["batch_size"])
        parameters.append(f"{count_parameters(model):,}")
        flops.append(f"{flops_per_utterance(model, batches) / 1e6:.1f}")
    return parameters + flops


def parts_of(chosen: Mapping[str, str], modalities: Iterable[str]) -> dict[str, str]:
    """Stage → its choice, with the modalities in brackets where only some have it.

    Args:
        chosen: the choice of every configuration group (:func:`merc.config.choices`).
        modalities: their order.
    """
    return {stage: _part(stage, chosen, tuple(modalities)) for stage in STAGES}


def _part(stage: str, chosen: Mapping[str, str], modalities: tuple[str, ...]) -> str:
    default = chosen.get(f"{stage}/module@{stage}.default", chosen[stage])
    having: dict[str, list[str]] = {}
    for modality in modalities:
        having.setdefault(chosen.get(f"{stage}/module@{stage}.{modality}", default), []).append(modality)
    if edges := chosen.get(f"{stage}/cross_modal"):
        having[edges] = ["between modalities"]
    parts = {part: who for part, who in having.items() if part != "none"} or {"none": list(modalities)}
    return ", ".join(part if who == list(modalities) else f"{part} ({', '.join(who)})" for part, who in parts.items())


if __name__ == "__main__":
    main()
