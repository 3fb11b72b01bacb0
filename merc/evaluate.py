"""``python -m merc.evaluate``: the scores of a checkpoint on a corpus, as it is or disturbed.

A checkpoint of merc knows its model, the data that it was trained on (same splits, same features) and the precision.
What the command says about data and precision wins, what it says about the model is refused. A released state dict
knows nothing: there the configuration of the command says everything. With ``noise`` or ``drop`` the features of
modalities are noisy or missing (:mod:`merc.robustness`), with ``sweep`` those of every finished run of an experiment.

One process on one device computes, the first of those that ``trainer`` names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, inference_mode

from merc import cli
from merc.config import check_plugins, instantiate, plain
from merc.data.conversation import SPLITS, ConversationBatch, CorpusInfo
from merc.data.datamodule import ConversationDataModule
from merc.errors import MercError, check_choice
from merc.files import write_json
from merc.models.lightning_module import CHECKPOINT_KEY, EmotionRecognition, load_checkpoint
from merc.models.precision import multiply_with
from merc.models.released import load_released
from merc.ranges import refuse_out_of_range
from merc.reporting.history import REPORTED
from merc.reporting.predictions import predict, write_predictions
from merc.reporting.quiet import quiet_lightning
from merc.reporting.run_folder import RunFolder
from merc.reporting.tables import class_table, robustness_table, scores_line, show
from merc.robustness import LEVELS, Row, disturbances, every_missing_set, measure, record
from merc.sweeping.manifest import read_sweeps
from merc.train import build_trainer

READ = (
    "ckpt", "sweep", "split", "out", "noise", "noisy", "drop", "draws", "run_root", "data", "trainer",
    "matmul_precision", "plugins",
)  # fmt: skip
"""Keys that scoring a checkpoint of merc reads."""

TRAINING = (
    "run_dir", "resume", "overwrite", "logger", "variants", "compile", "profile_steps", "seeds_per_process",
    "optimizer", "scheduler",
)  # fmt: skip
"""Keys of training, which scoring a released state dict does not read."""

RELEASED_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


def main() -> None:
    """The command."""
    cli.run(_command, "evaluate")


def _command(cfg: DictConfig) -> None:
    overrides = HydraConfig.get().overrides.task
    if cfg.sweep is not None:
        evaluate_sweep(cfg, overrides)
    elif cfg.noise is not None or cfg.drop is not None:
        evaluate_disturbed(cfg, overrides)
    else:
        evaluate(cfg, overrides)


def evaluate(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Score a checkpoint on one split, print the scores and, if ``out`` names a folder, write them there.

    Args:
        cfg: the composed configuration, see conf/evaluate.yaml.
        overrides: what the command says, ``key=value``. Of a checkpoint's own data only what stands here is taken from
            ``cfg``.

    Returns:
        What is written to ``out``/metrics.json: ``ckpt``, ``split``, ``loss`` and the scores of a run's metrics.json.

    Raises:
        MercError: the checkpoint cannot be read or does not fit the data, the split is not what it was in training,
            or an override is without effect.
    """
    quiet_lightning()
    config = plain(cfg)
    ckpt, split = _checkpoint(config), config["split"]
    module, data = _open(ckpt, config, overrides)
    loader, precision = data.loader(split), _place(module, config)
    metrics = {"ckpt": str(ckpt), "split": split, **_scores(module, loader, precision())}
    if config["out"] is not None:
        prediction = predict(module, loader, precision())
        write_predictions(Path(config["out"]) / "predictions.parquet", {split: (data.parts[split], prediction)})
        write_json(Path(config["out"]) / "metrics.json", metrics)
    show(class_table(metrics["per_class"], title=f"Scores on {split}"))
    show(scores_line(metrics))
    return metrics


def _place(module: EmotionRecognition, config: dict[str, Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Put the module on the device that ``trainer`` names; returns what makes the context of its precision."""
    trainer = build_trainer(config, logger=False)
    module.to(trainer.strategy.root_device)
    return trainer.precision_plugin.forward_context


def _scores(
    module: EmotionRecognition, batches: Iterable[ConversationBatch], precision: AbstractContextManager[Any]
) -> dict[str, Any]:
    """``loss`` and the reported scores, as validation in training has them."""
    # Not by Lightning's validate, which would share the dialogues out among devices and count some twice.
    with inference_mode(), precision:
        for number, batch in enumerate(batches):
            module.validation_step(batch.to(module.device), number)
    # Kept under the name of the first split that training evaluates, whichever this one is.
    scores = module.take_scores(module.evaluation_splits[0])
    return {name: scores[name] for name in ("loss", *REPORTED)}


def evaluate_disturbed(cfg: DictConfig, overrides: Sequence[str] = ()) -> list[Row]:
    """Score a checkpoint with noisy or missing modalities, print the scores and write robustness.json.

    It goes to ``out``, else into the run folder if the run is finished, the checkpoint the one that its scores are of
    and the data its own. Otherwise nothing is written, and a line says so.

    Args:
        cfg: the composed configuration, see conf/evaluate.yaml.
        overrides: what the command says, ``key=value``.

    Returns:
        The rows of this command in robustness.json.

    Raises:
        MercError: as :func:`evaluate`, or a disturbance does not fit the model.
    """
    quiet_lightning()
    config = plain(cfg)
    ckpt = _checkpoint(config)
    # Looked up first: a run that ends while this computes may report another epoch than the one that is loaded.
    target = _robustness_file(ckpt, config["out"], overrides)
    rows = _disturbed(ckpt, config, overrides)
    show(robustness_table(rows))
    if target is not None:
        record(target, rows)
    else:
        show("Printed only: a run folder takes what a finished run reports, on its own data. Add out=… to write it.")
    return rows


def _robustness_file(ckpt: Path, out: str | None, overrides: Sequence[str]) -> Path | None:
    """Where the scores of a checkpoint go; None: nowhere."""
    if out is not None:
        return Path(out) / "robustness.json"
    folder = RunFolder(ckpt.parent.parent)
    reported = ckpt == folder.reported and folder.finished and not _about_data(overrides)
    return folder.robustness if reported else None


def evaluate_sweep(cfg: DictConfig, overrides: Sequence[str] = ()) -> list[Path]:
    """Score every finished run of a sweep with noisy or missing modalities; each gets its robustness.json.

    Args:
        cfg: the composed configuration, see conf/evaluate.yaml.
        overrides: what the command says, ``key=value``.

    Returns:
        The run folders, in the order of the sweep.

    Raises:
        MercError: there is no such sweep, none of its runs is finished, or as :func:`evaluate_disturbed`.
    """
    quiet_lightning()
    config = plain(cfg)
    if config["ckpt"] is not None or config["out"] is not None:
        raise MercError("sweep=… evaluates the runs of a sweep, each into its own folder. Leave out ckpt and out.")
    if _about_data(overrides):
        raise MercError("sweep=… evaluates each run on its own data. Leave out data…, or name one run with ckpt=….")
    names = config["sweep"] if isinstance(config["sweep"], list) else [str(config["sweep"])]
    run_root = Path(config["run_root"])
    runs = dict.fromkeys(job.run for sweep in read_sweeps(run_root, names) for job in sweep.jobs)
    folders = [RunFolder(run_root / run) for run in runs]
    finished = [folder for folder in folders if folder.finished]
    if not finished:
        raise MercError(f"None of the {len(folders)} runs of {', '.join(names)} is finished: train them first.")
    for folder in finished:
        record(folder.robustness, _disturbed(folder.reported, config, overrides))
        show(f"{folder.robustness}")
    show(f"{len(finished)} of {len(folders)} runs evaluated" + ("." if finished == folders else "; the others wait."))
    return [folder.path for folder in finished]


def _disturbed(ckpt: Path, config: dict[str, Any], overrides: Sequence[str]) -> list[Row]:
    config = dict(config)
    module, data = _open(ckpt, config, overrides)
    modalities = module.info.modalities
    if config["noise"] is None and config["drop"] is None:
        asked = disturbances(modalities, LEVELS, config["noisy"]) + every_missing_set(modalities)
    else:
        asked = disturbances(modalities, config["noise"], config["noisy"], config["drop"])
    return measure(module, data, config["split"], asked, config["draws"], _place(module, config))


def _checkpoint(config: Mapping[str, Any]) -> Path:
    """The file that ``ckpt`` means: itself, or the one that the scores of a run folder are of."""
    if config["ckpt"] is None:
        raise MercError("Say what to evaluate: ckpt=… names a checkpoint or a run folder, sweep=… an experiment.")
    path = Path(config["ckpt"])
    return RunFolder(path).reported if path.is_dir() else path


def _open(
    ckpt: Path, config: dict[str, Any], overrides: Sequence[str]
) -> tuple[EmotionRecognition, ConversationDataModule]:
    """The module of a checkpoint, and the data to score it on; their settings are put into ``config``."""
    split = config["split"]
    check_choice("split", split, SPLITS)
    refuse_out_of_range(config)
    check_plugins(config["plugins"])
    own = _own_module(ckpt, config["plugins"])
    _refuse_unread(config, overrides, released=own is None)
    if own is not None:
        config |= _data_of(own.config, config, overrides) | _precision_of(own.config, config, overrides)
    elif not _names_data(overrides):
        raise MercError(
            f"{ckpt} does not say what it was trained on. Say on which corpus to evaluate it: data=meld, data=iemocap, "
            "data=custom, data=synthetic_meld, …."
        )
    multiply_with(config["matmul_precision"])
    data: ConversationDataModule = instantiate(config["data"], config["plugins"])
    if own is not None:
        data.scales = own.info.scales
    data.setup()
    if split not in data.parts:
        raise MercError(f"The data has no {split} split, only {', '.join(data.parts)}: see data.split.")
    if own is None:
        return _released_module(ckpt, config, data.info), data
    _refuse_other_data(own, config, data.info)
    _refuse_replaced_store(own, config, data.info, overrides)
    if split == "validation":
        _refuse_training_dialogues(own.config, config)
    return own, data


def _own_module(ckpt: Path, plugins: Sequence[str]) -> EmotionRecognition | None:
    """The module of a checkpoint of merc; None for a state dict of another program."""
    if ckpt.suffix == ".safetensors":
        return None
    if CHECKPOINT_KEY not in load_checkpoint(ckpt) and ckpt.suffix in RELEASED_SUFFIXES:
        return None
    return EmotionRecognition.from_checkpoint(ckpt, plugins)


def _refuse_unread(config: Mapping[str, Any], overrides: Sequence[str], *, released: bool) -> None:
    """Refuse what the command says without effect on the scores; a released state dict takes the model from it."""
    noise = config["noise"] is not None or (config["sweep"] is not None and config["drop"] is None)
    for override, key in zip(overrides, _keys(overrides), strict=True):
        name = key.split(".")[0]
        if name in ("noisy", "draws") and not noise:
            raise MercError(f"{override} is without effect: there is no noise. Add noise=[0,0.1], or leave it out.")
        if released and name in TRAINING:
            raise MercError(f"{override} is without effect: nothing is trained here. Leave it out.")
        if not released and name not in READ:
            raise MercError(
                f"{override} is without effect: the checkpoint says what the model is and what it was trained on. "
                f"Leave it out; only {', '.join(READ)} and the keys below them count here."
            )


def _keys(overrides: Sequence[str]) -> list[str]:
    """What each override sets: ``data`` a choice of data, ``data.size`` one of its values."""
    return [override.lstrip("+").split("=")[0] for override in overrides]


def _names_data(overrides: Sequence[str]) -> bool:
    return "data" in _keys(overrides)


def _about_data(overrides: Sequence[str]) -> bool:
    return any(key.split(".")[0] == "data" for key in _keys(overrides))


def _data_of(trained: Mapping[str, Any], config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``data`` and ``corpus``: those of training, except what the command says; with other data, the command's."""
    if _names_data(overrides) and _source(trained) != _source(config):
        return {key: config[key] for key in ("data", "corpus")}
    data, command = OmegaConf.create({"data": trained["data"]}), OmegaConf.create(dict(config))
    for key in _keys(overrides):
        if key.startswith("data."):
            OmegaConf.update(data, key, OmegaConf.select(command, key), force_add=True)
    return {"data": plain(data)["data"], "corpus": trained["corpus"]}


def _precision_of(trained: Mapping[str, Any], config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``trainer`` and ``matmul_precision``: as precise as training was, unless the command says otherwise."""
    said = _keys(overrides)
    trainer, matmul = config["trainer"], config["matmul_precision"]
    if "trainer.precision" not in said:
        trainer = {**trainer, "precision": trained["trainer"].get("precision")}
    if "matmul_precision" not in said:
        matmul = trained.get("matmul_precision", matmul)
    return {"trainer": trainer, "matmul_precision": matmul}


def _source(config: Mapping[str, Any]) -> tuple[str, Any]:
    return config["data"]["_target_"], config["corpus"]["name"]


def _refuse_training_dialogues(trained: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    there, here = trained["data"], config["data"]
    if _source(trained) == _source(config) and _validation(there) != _validation(here):
        raise MercError(
            "These validation dialogues are not those of training, where some of them were training data: it had "
            f"{_described(there)}, the command says {_described(here)}. Leave these keys out, or evaluate split=test."
        )


def _validation(data: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides which dialogues are validation."""
    drawn = data["validation_fraction"]
    return data["split"], drawn, drawn and data["seed"]


def _described(data: Mapping[str, Any]) -> str:
    return " ".join(f"data.{key}={data[key]}" for key in ("split", "validation_fraction", "seed"))


def _released_module(ckpt: Path, config: dict[str, Any], info: CorpusInfo) -> EmotionRecognition:
    module = EmotionRecognition(config, info)
    load_released(module.model, _released_state(ckpt))
    return module.eval()


def _released_state(ckpt: Path) -> dict[str, Tensor]:
    if ckpt.suffix != ".safetensors":
        return load_checkpoint(ckpt)
    try:
        return load_file(ckpt)
    except FileNotFoundError as error:
        raise MercError(f"There is no checkpoint at {ckpt}.") from error
    except SafetensorError as error:
        raise MercError(f"{ckpt} is no safetensors file, or a damaged one: {error}") from error


def _refuse_other_data(module: EmotionRecognition, config: dict[str, Any], info: CorpusInfo) -> None:
    """The inputs must mean what they meant in training."""
    trained = module.info
    if info.label_names != trained.label_names:
        raise MercError(
            f"The checkpoint tells {', '.join(trained.label_names)} apart, the data has the classes "
            f"{', '.join(info.label_names)}. Evaluate it on the corpus that it was trained on."
        )
    if info.dims != trained.dims or info.modalities != trained.modalities:
        raise MercError(
            f"The checkpoint takes {_dims(trained)}, the data has {_dims(info)}. Evaluate it on features of the same "
            f"kind; data.modalities=[{','.join(trained.modalities)}] chooses the modalities."
        )
    if info.speaker_slots > trained.speaker_slots:
        raise MercError(
            f"The checkpoint knows {trained.speaker_slots} speakers per dialogue, the data has {info.speaker_slots}. "
            f"If no dialogue needs more, set data.speaker_slots={trained.speaker_slots}."
        )
    standardize = module.config["data"]["standardize"]
    if standardize != config["data"]["standardize"]:
        raise MercError(
            f"The checkpoint was trained with data.standardize={standardize}, the data comes with "
            f"{config['data']['standardize']}. Add data.standardize={standardize}."
        )


def _refuse_replaced_store(
    module: EmotionRecognition, config: Mapping[str, Any], info: CorpusInfo, overrides: Sequence[str]
) -> None:
    """What lies where the training data lay must be those, unless the command asks for what lies there."""
    store = config["data"].get("store")
    same_place = store == module.config["data"].get("store") and "data.store" not in _keys(overrides)
    if same_place and info.fingerprint != module.info.fingerprint:
        raise MercError(
            f"The feature store {store} was replaced since the checkpoint was trained on it. To evaluate on what it "
            f"holds now, add data.store={store}."
        )


def _dims(info: CorpusInfo) -> str:
    return ", ".join(f"{modality} {dim}" for modality, dim in info.dims.items())


if __name__ == "__main__":
    main()
