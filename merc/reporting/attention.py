"""What a trained model attends to in one dialogue, from its run folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from merc.config import check_plugins, instantiate
from merc.data.conversation import SPLITS, ConversationBatch, Conversations
from merc.data.datamodule import ConversationDataModule
from merc.errors import MercError, nearest
from merc.models.lightning_module import EmotionRecognition
from merc.reporting.run_folder import RunFolder
from merc.reporting.statistics import Array


@dataclass(frozen=True)
class DialogueAttention:
    """The attention of every layer that has any, in one dialogue of L utterances.

    Args:
        utterances: L ids.
        speakers: index of the speaker of each.
        labels: class id of each.
        layers: layer → head → (L, L), the receiving utterances first; rows need not sum to 1 where maps are subtracted.
    """

    utterances: tuple[str, ...]
    speakers: tuple[int, ...]
    labels: tuple[int, ...]
    layers: Mapping[str, Mapping[str, Array]]

    def same_dialogue(self, other: "DialogueAttention") -> bool:
        """Whether both are about the same utterances of the same speakers with the same labels."""
        return (self.utterances, self.speakers, self.labels) == (other.utterances, other.speakers, other.labels)


def read_attention(folder: RunFolder, dialogue: str, plugins: Sequence[str] = ()) -> DialogueAttention:
    """Run a dialogue through the model of a run, as it is in evaluation, and keep its attention.

    Args:
        folder: of a run; the checkpoint is the one that its predictions are of.
        dialogue: id of a dialogue of the run's data, in whatever split.
        plugins: packages of the user's from which parts of the model or the data may come.

    Raises:
        MercError: the checkpoint or the data are missing or damaged, or have no such dialogue.
    """
    check_plugins(plugins)
    module = EmotionRecognition.from_checkpoint(folder.reported, plugins)
    data: ConversationDataModule = instantiate(module.config["data"], plugins)
    data.setup()
    part = _one_dialogue(data.parts, dialogue)
    return DialogueAttention(
        part.utterance_ids,
        tuple(part.speakers.tolist()),
        tuple(part.labels.tolist()),
        attention_of(module.model, part.batch([0])),
    )


def attention_of(model: nn.Module, batch: ConversationBatch) -> dict[str, dict[str, Array]]:
    """Layer → head → (N, N) attention of a model in evaluation mode, of every part with a method ``attention_maps``.

    That method takes what the part's ``forward`` takes, and returns (N, H, N), the receiving rows first.

    Args:
        model: called with the batch.
        batch: N utterances.
    """
    layers: dict[str, dict[str, Array]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        layer, head = _layer_and_head(name)

        def hook(part: Any, inputs: tuple[Any, ...], _: Any) -> None:
            maps_NHN: Tensor = part.attention_maps(*inputs)
            maps = maps_NHN.transpose(0, 1).double().numpy()
            names = [head] if head == "output" else [f"{head} {number}" for number in range(1, len(maps) + 1)]
            layers.setdefault(layer, {}).update(zip(names, maps, strict=True))

        return hook

    parts = [(name, part) for name, part in model.named_modules() if hasattr(part, "attention_maps")]
    handles = [part.register_forward_hook(keep(name)) for name, part in parts]
    try:
        with torch.inference_mode():
            model.eval()(batch)
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _layer_and_head(name: str) -> tuple[str, str]:
    """``graph.branches.branches.text.layers.inter_speaker.1.heads`` → ``graph text inter-speaker 2``, ``head``."""
    # The first of several layers is named as if it were the only one: another run may have no second.
    skipped = ("branches", "layers", "attention", "heads", "output", "0")
    words = [word for word in name.split(".") if word not in skipped]
    layer = " ".join(str(int(word) + 1) if word.isdigit() else word.replace("_", "-") for word in words)
    return layer, "output" if name.endswith(".output") else "head"


def _one_dialogue(parts: Mapping[str, Conversations], dialogue: str) -> Conversations:
    """A dialogue as a corpus of its own; one of the test split where splits share its name."""
    for split in reversed(SPLITS):
        if split in parts and dialogue in parts[split].dialogue_ids:
            return parts[split].select([parts[split].dialogue_ids.index(dialogue)])
    names = [name for part in parts.values() for name in part.dialogue_ids]
    raise MercError(
        f"The data of the run has no dialogue '{dialogue}'.{nearest(dialogue, names)} predictions.parquet names those "
        "of the evaluated splits."
    )
