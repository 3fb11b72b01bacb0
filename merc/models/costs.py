"""What a model costs on the published shape of a corpus, counted on the meta device: nothing is computed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.data.corpora import Corpus
from merc.data.synthetic import generate
from merc.kernels import pytorch_alone
from merc.models.build import build_model
from merc.models.emotion_model import EmotionModel


def published_model(config: Mapping[str, Any], corpus: Corpus) -> EmotionModel:
    """The model of a plain resolved configuration in the published shape of a corpus, on the meta device."""
    info = CorpusInfo(
        dims=dict(corpus.dims),
        label_names=corpus.label_names,
        speaker_slots=corpus.speaker_slots,
        class_counts=corpus.splits["train"].class_counts,
    )
    with torch.device("meta"):
        return build_model(config, info).eval()


def published_batches(corpus: Corpus, batch_size: int) -> Iterator[ConversationBatch]:
    """Batches on the meta device: the dialogue lengths of generated conversations' test split, in their order.

    Args:
        corpus: whose published numbers of dialogues and utterances to imitate.
        batch_size: dialogues per batch.
    """
    data = generate(corpus, dims=dict.fromkeys(corpus.dims, 1))
    test = [dialogue for dialogue, split in enumerate(data.splits) if split == "test"]
    for start in range(0, len(test), batch_size):
        batch = data.batch(test[start : start + batch_size]).to("meta")
        shapes = {m: (batch.rows, dim) for m, dim in corpus.dims.items()}
        yield replace(batch, features={m: torch.empty(shape, device="meta") for m, shape in shapes.items()})


def flops_per_utterance(model: EmotionModel, batches: Iterable[ConversationBatch]) -> float:
    """Floating-point operations of a forward pass, divided by the utterances.

    Matrix products and convolutions are counted, a multiplication with its addition as two operations; norms, softmax,
    activations and look-ups are not. On the meta device nothing is computed.

    Args:
        model: in evaluation mode, on the device of the batches.
        batches: one or more.
    """
    operations, utterances = 0, 0
    for batch in batches:
        utterances += batch.rows
        prepared = model.prepared(batch)
        # The counter knows the products that attention consists of, but not every fused kernel.
        with pytorch_alone(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model.classify(model.encode(prepared), prepared)
        operations += counter.get_total_flops()
    return operations / utterances
