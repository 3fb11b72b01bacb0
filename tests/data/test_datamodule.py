from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from merc.config import compose, instantiate
from merc.data.conversation import ConversationBatch, Conversations
from merc.data.corpora import IEMOCAP, MELD
from merc.data.datamodule import (
    ConversationDataModule,
    CustomDataModule,
    EpochShuffle,
    IEMOCAPDataModule,
    MELDDataModule,
    SyntheticDataModule,
)
from merc.data.store import write_store
from merc.data.synthetic import CONTAGION, INERTIA, SIGNAL, generate
from merc.errors import MercError

DIMS = {"text": 6, "audio": 4, "visual": 3}
StoreWriter = Callable[[Conversations], Path]


@pytest.fixture
def written(tmp_path: Path) -> StoreWriter:
    def write(conversations: Conversations) -> Path:
        write_store(tmp_path / "store", conversations, corpus=None, sources={})
        return tmp_path / "store"

    return write


@pytest.fixture(scope="module")
def meld() -> Conversations:
    return generate(MELD, size=0.02, seed=1, dims=DIMS)


def synthetic(imitate: str = "meld", **arguments: Any) -> SyntheticDataModule:
    small: dict[str, Any] = {"size": 0.02, "dims": DIMS, "seed": 1, "batch_size": 4}
    small |= {"signal": SIGNAL, "inertia": INERTIA, "contagion": CONTAGION}
    data = SyntheticDataModule(imitate, **small | arguments)
    data.setup()
    return data


def of_split(conversations: Conversations, *splits: str) -> tuple[str, ...]:
    ids = zip(conversations.dialogue_ids, conversations.splits, strict=True)
    return tuple(dialogue for dialogue, split in ids if split in splits)


def relabelled(conversations: Conversations, old: str, new: str) -> Conversations:
    return replace(conversations, splits=tuple(new if split == old else split for split in conversations.splits))


@pytest.mark.parametrize(
    ("choice", "corpus", "batch_size"),
    [
        ("meld", "meld", 64),
        ("iemocap", "iemocap", 16),
        ("custom", None, 16),
        ("synthetic_meld", "meld", 64),
        ("synthetic_iemocap", "iemocap", 16),
    ],
)
def test_data_choice_selects_corpus_and_published_values(choice: str, corpus: str | None, batch_size: int) -> None:
    config = compose([f"data={choice}", "model=amb_dsgdn", "seed=7"])
    data = instantiate(config.data)
    assert config.corpus.name == corpus
    assert (data.corpus.name if data.corpus else None) == corpus
    assert (data.batch_size, data.seed, data.modalities) == (batch_size, 7, ("text", "audio", "visual"))


@pytest.mark.parametrize("corpus", [MELD, IEMOCAP], ids=lambda corpus: corpus.name)
def test_synthetic_configuration_has_the_published_dimensions(corpus: Any) -> None:
    assert dict(compose([f"data=synthetic_{corpus.name}"]).data.dims) == corpus.dims


def test_synthetic_values_reach_the_generator_from_the_command_line() -> None:
    config = compose(["data=synthetic_iemocap", "data.size=0.01", "data.dims.audio=5", "data.modalities=[audio,text]"])
    data = instantiate(config.data)
    data.setup()
    expected = generate(IEMOCAP, size=0.01, seed=config.seed, dims={"audio": 5, "text": 1024})
    assert data.info.dims == {"audio": 5, "text": 1024}
    assert data.info.modalities == ("audio", "text")
    whole = torch.cat([part.features["audio"] for part in data.parts.values()])
    assert torch.equal(whole, expected.features["audio"])


def test_official_split_is_that_of_the_store(written: StoreWriter, meld: Conversations) -> None:
    data = MELDDataModule(store=written(meld))
    data.setup()
    assert data.evaluation_splits == ("validation", "test")
    assert list(data.parts) == ["train", "validation", "test"]
    for split, part in data.parts.items():
        assert part.dialogue_ids == of_split(meld, split)
    assert data.info.label_names == MELD.label_names
    assert data.info.speaker_slots == 9
    assert data.info.class_counts == tuple(np.bincount(data.parts["train"].labels, minlength=7))
    assert sum(data.info.class_counts) < len(meld.labels)


def test_merged_split_trains_on_validation_too(written: StoreWriter, meld: Conversations) -> None:
    data = MELDDataModule(store=written(meld), split="merged")
    data.setup()
    assert data.evaluation_splits == ("test",)
    assert list(data.parts) == ["train", "test"]
    assert data.parts["train"].dialogue_ids == of_split(meld, "train", "validation")
    assert len(data.val_dataloader()) == 1


def test_corpus_names_the_validation_dialogues_of_a_store_without(written: StoreWriter, meld: Conversations) -> None:
    numbers = iter(range(1035, 2000))
    without = replace(
        relabelled(meld, "validation", "train"), dialogue_ids=tuple(str(next(numbers)) for _ in meld.lengths)
    )
    data = MELDDataModule(store=written(without))
    data.setup()
    assert data.parts["train"].dialogue_ids == ("1035", "1036", "1037", "1038")
    assert "1039" in data.parts["validation"].dialogue_ids
    assert data.parts["test"].dialogue_ids == of_split(without, "test")


def test_iemocap_validation_dialogues(written: StoreWriter) -> None:
    iemocap = relabelled(generate(IEMOCAP, size=0.1, dims=DIMS), "validation", "train")
    names = ["Ses01F_impro01", "Ses01M_impro01", "Ses04F_script02_1"]
    ids = (*names, *iemocap.dialogue_ids[3:])
    data = IEMOCAPDataModule(store=written(replace(iemocap, dialogue_ids=ids)))
    data.setup()
    assert data.parts["validation"].dialogue_ids == tuple(names[1:])
    assert data.info.speaker_slots == 2


def test_validation_fraction_is_a_function_of_the_seed(written: StoreWriter, meld: Conversations) -> None:
    store = written(meld)

    def division(seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        data = MELDDataModule(store=store, validation_fraction=0.25, seed=seed)
        data.setup()
        return data.parts["train"].dialogue_ids, data.parts["validation"].dialogue_ids

    pool = of_split(meld, "train", "validation")
    train, validation = division(1)
    assert len(validation) == round(0.25 * len(pool))
    assert sorted(train + validation) == sorted(pool)
    assert train == tuple(dialogue for dialogue in pool if dialogue in train)
    assert division(1) == (train, validation)
    assert division(2) != (train, validation)


def test_the_length_of_test_dialogues_can_be_limited(written: StoreWriter, meld: Conversations) -> None:
    store = written(meld)
    whole, limited = MELDDataModule(store=store), MELDDataModule(store=store, test_lengths=[8, 12])
    whole.setup()
    limited.setup()
    for split in ("train", "validation"):
        assert limited.parts[split].dialogue_ids == whole.parts[split].dialogue_ids
    lengths = dict(zip(whole.parts["test"].dialogue_ids, whole.parts["test"].lengths, strict=True))
    expected = {dialogue: length for dialogue, length in lengths.items() if 8 <= length <= 12}
    assert {8, 12} <= set(expected.values()) < set(lengths.values())
    assert dict(zip(limited.parts["test"].dialogue_ids, limited.parts["test"].lengths, strict=True)) == expected


@pytest.mark.parametrize("lengths", [[], [20], [0, 5], [6, 5], [1, 2.5], 20, "ab"])
def test_limits_that_are_none(lengths: Any) -> None:
    with pytest.raises(MercError, match=r"data\.test_lengths=.*two whole numbers"):
        synthetic(test_lengths=lengths)


def test_limits_that_no_dialogue_keeps() -> None:
    with pytest.raises(MercError, match=r"test split is empty.*data\.test_lengths"):
        synthetic(test_lengths=[1000, 2000])


def test_custom_store_brings_its_own_classes_and_speakers(written: StoreWriter, meld: Conversations) -> None:
    own = replace(meld, label_names=tuple("abcdefg"))
    data = CustomDataModule(store=written(own), modalities=["visual", "text"])
    data.setup()
    assert data.info.label_names == tuple("abcdefg")
    assert data.info.speaker_slots == int(meld.speakers.max()) + 1
    assert data.info.dims == {"visual": 3, "text": 6}
    assert torch.equal(data.parts["test"].features["text"], meld.features["text"][-len(data.parts["test"].labels) :])


def test_zscore_agrees_with_scikit_learn_fitted_on_training(written: StoreWriter, meld: Conversations) -> None:
    skewed = replace(meld, features={m: rows * 100 + 1e4 for m, rows in meld.features.items()})
    store = written(skewed)
    plain, scaled = CustomDataModule(store=store), CustomDataModule(store=store, standardize="zscore")
    plain.setup()
    scaled.setup()
    for modality in DIMS:
        scaler = StandardScaler().fit(plain.parts["train"].features[modality].double())
        for split, part in scaled.parts.items():
            expected = scaler.transform(plain.parts[split].features[modality].double())
            assert part.features[modality].dtype == torch.float32
            np.testing.assert_allclose(part.features[modality], expected, atol=1e-5)


def test_zscore_leaves_constant_columns_finite(written: StoreWriter, meld: Conversations) -> None:
    rows = meld.features["text"].clone()
    rows[:, 0], rows[:, 1] = 0.1, 0.0
    rows[-1, 0] = 5.1  # a test utterance
    data = CustomDataModule(
        store=written(replace(meld, features={"text": rows})), modalities=["text"], standardize="zscore"
    )
    data.setup()
    assert data.parts["train"].features["text"][:, :2].abs().max() < 1e-6
    assert data.parts["test"].features["text"][-1, 0] == pytest.approx(5.0)


def test_setup_is_idempotent() -> None:
    data = synthetic(standardize="zscore")
    parts = data.parts
    data.setup("fit")
    assert data.parts is parts


def test_loaders_serve_every_dialogue_once_in_corpus_order() -> None:
    data = synthetic(evaluation_batch_size=3)
    for split, loader in zip(data.evaluation_splits, data.val_dataloader(), strict=True):
        batches: list[Any] = list(loader)
        part = data.parts[split]
        assert all(isinstance(batch, ConversationBatch) for batch in batches)
        assert max(len(batch.lengths) for batch in batches) == 3
        assert [n for batch in batches for n in batch.lengths] == list(part.lengths)
        assert torch.equal(torch.cat([batch.features["audio"] for batch in batches]), part.features["audio"])
        assert torch.equal(torch.cat([batch.labels for batch in batches]), part.labels)
    assert [batch.lengths for batch in data.test_dataloader()] == [batch.lengths for batch in data.loader("test")]


@pytest.mark.parametrize("standardize", ["none", "zscore"])
def test_data_that_reside_on_a_device_come_in_the_same_batches(standardize: str) -> None:
    data = synthetic(standardize=standardize)
    data.setup()
    loaders = (data.train_dataloader, data.test_dataloader)
    before = [batch for loader in loaders for batch in loader()]
    data.reside(torch.device("cpu"))
    for batch, expected in zip([batch for loader in loaders for batch in loader()], before, strict=True):
        assert batch.lengths == expected.lengths
        torch.testing.assert_close(batch.labels, expected.labels, rtol=0, atol=0)
        torch.testing.assert_close(batch.speakers, expected.speakers, rtol=0, atol=0)
        torch.testing.assert_close(batch.features, expected.features, rtol=0, atol=0)


def test_batches_of_data_that_reside_on_a_device_are_made_there() -> None:
    data = synthetic()
    data.setup()
    data.reside(torch.device("meta"))
    batch = next(iter(data.train_dataloader()))
    assert {x.device.type for x in (batch.labels, batch.speakers, *batch.features.values())} == {"meta"}
    assert data.parts["train"].labels.device.type == "cpu"


def test_feature_bytes() -> None:
    data = synthetic()
    data.setup()
    features = [part.features for part in data.parts.values()]
    assert data.feature_bytes == sum(x[m].numel() * x[m].element_size() for x in features for m in x)


def test_epoch_shuffle_is_a_permutation_fixed_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochShuffle(50, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(1, 0)) == list(range(50))
    assert order(1, 3) == order(1, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_no_loader_touches_the_global_generator() -> None:
    data = synthetic()
    state = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.loader("test"))
    assert torch.equal(torch.get_rng_state(), state)


class Recorder(L.LightningModule):
    """Trains one weight and notes which batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, tuple[int, ...]]] = []

    def training_step(self, batch: ConversationBatch, batch_index: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, tuple(batch.labels.tolist())))
        return (self.weight * batch.features["text"].mean()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, epochs: int) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def test_lightning_reshuffles_each_epoch_and_a_resumed_run_sees_the_same(tmp_path: Path) -> None:
    whole = Recorder()
    trainer(tmp_path, 3).fit(whole, datamodule=synthetic())

    first, second = Recorder(), Recorder()
    interrupted = trainer(tmp_path, 2)
    interrupted.fit(first, datamodule=synthetic())
    interrupted.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, 3).fit(second, datamodule=synthetic(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)

    epochs = [[labels for epoch, labels in whole.seen if epoch == n] for n in range(3)]
    assert first.seen + second.seen == whole.seen
    assert len({tuple(epoch) for epoch in epochs}) == 3

    data, sampler = synthetic(), EpochShuffle(len(synthetic().parts["train"].lengths), 1)
    for number, epoch in enumerate(epochs):
        sampler.set_epoch(number)
        assert sum(epoch, ()) == tuple(data.parts["train"].batch(list(sampler)).labels.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "offical"}, r"data.split=offical.*Did you mean 'official'"),
        ({"standardize": "z"}, "data.standardize=z"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"evaluation_batch_size": -1}, "data.evaluation_batch_size=-1"),
        ({"modalities": []}, "at least one modality"),
        ({"modalities": ["text", "text"]}, "only once"),
        ({"modalities": ["txt"]}, r"'txt', only text, audio, visual.*'text'.*data\.modalities="),
        ({"validation_fraction": 1.0}, "data.validation_fraction=1.0"),
        ({"validation_fraction": 0.1, "split": "merged"}, "only one of the two"),
        ({"imitate": "mled"}, "Did you mean 'meld'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MercError, match=message):
        synthetic(**arguments)


@pytest.mark.parametrize("choice", ["meld", "iemocap", "custom"])
def test_a_missing_store_says_how_to_get_one(choice: str, tmp_path: Path) -> None:
    data: ConversationDataModule = instantiate(compose([f"data={choice}", f"data.store={tmp_path}/none"]).data)
    with pytest.raises(MercError, match=r"none.*merc\.prepare --help.*data=synthetic_meld"):
        data.setup()


def test_a_modality_that_the_store_lacks(written: StoreWriter, meld: Conversations) -> None:
    store = written(replace(meld, features={m: meld.features[m] for m in ("text", "audio")}))
    with pytest.raises(MercError, match=r"visual.*text, audio.*data\.modalities="):
        MELDDataModule(store=store).setup()


def test_another_corpus(written: StoreWriter, meld: Conversations) -> None:
    with pytest.raises(MercError, match=r"surprise.*frustrated.*data=custom"):
        IEMOCAPDataModule(store=written(meld)).setup()


def test_labels_in_another_order(written: StoreWriter, meld: Conversations) -> None:
    with pytest.raises(MercError, match="in this order"):
        MELDDataModule(store=written(replace(meld, label_names=MELD.label_names[::-1]))).setup()


def test_more_speakers_than_slots(written: StoreWriter, meld: Conversations) -> None:
    speakers = meld.speakers.clone()
    speakers[0] = 9
    store = written(replace(meld, speakers=speakers))
    with pytest.raises(
        MercError, match=rf"{meld.dialogue_ids[0]}.*10 speakers.*9 speaker slots.*data.speaker_slots=10"
    ):
        MELDDataModule(store=store).setup()
    data = MELDDataModule(store=store, speaker_slots=10)
    data.setup()
    assert data.info.speaker_slots == 10


@pytest.mark.parametrize(
    ("empty", "hint"), [("validation", "validation_fraction=0.1.*data.split=merged"), ("test", "marked as test")]
)
def test_an_empty_split(empty: str, hint: str, written: StoreWriter, meld: Conversations) -> None:
    store = written(relabelled(meld, empty, "train"))
    with pytest.raises(MercError, match=f"The {empty} split is empty.*{hint}"):
        CustomDataModule(store=store).setup()


def test_no_training_dialogues(written: StoreWriter, meld: Conversations) -> None:
    with pytest.raises(MercError, match="The train split is empty"):
        CustomDataModule(store=written(relabelled(meld, "train", "test"))).setup()
