"""What cannot be trained for several seeds at once with the numbers of runs alone, refused with the reason."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from merc.config import locate
from merc.data.conversation import CorpusInfo
from merc.errors import MercError, check_choice
from merc.stacking.replay import CUDA_GRAPHS
from merc.stacking.state import ELEMENTWISE

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of torch.compile."""

ALONE = "Train the seeds one by one: seeds_per_process=1."


def refuse_stacking(configs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse configurations whose runs cannot share one training; a single one is a stack in order to be compiled.

    A class that works on single runs only says so with ``trains_alone = True``.

    Args:
        configs: the plain resolved configuration of each seed.

    Raises:
        MercError: a choice stands against it, or the configurations differ in more than the seed.
    """
    compiled = configs[0]["compile"]
    check_choice("compile", "null" if compiled is None else compiled, ("null", CUDA_GRAPHS, *MODES))
    for reason in _reasons(configs[0], len(configs) == 1):
        if len(configs) == 1:
            raise MercError(f"The run cannot be compiled: {reason} Leave compile=null.")
        raise MercError(f"Several seeds cannot be trained at once: {reason} {ALONE}")
    own = ("seed", "data", "run_dir")  # the data may follow the seed, and where it is written
    shared = [{key: value for key, value in config.items() if key not in own} for config in configs]
    if differing := [key for key in shared[0] if any(config[key] != shared[0][key] for config in shared)]:
        raise MercError(f"Several seeds cannot be trained at once: {', '.join(differing)} depends on the seed. {ALONE}")


def _reasons(config: Mapping[str, Any], single: bool) -> Iterator[str]:
    trainer = config["trainer"]
    if config["plugins"]:
        yield f"plugins={config['plugins']}: parts of your own may not work under torch.func.vmap."
    for name in _targets(config):
        if getattr(locate({"_target_": name}), "trains_alone", False):
            yield f"{name.rsplit('.', 1)[-1]} works on single runs only."
    if config["model"]["pad_dialogues"]:
        yield "with model.pad_dialogues predictions depend on padding, which all seeds of a batch share."
    if config["optimizer"]["_target_"] not in [f"torch.optim.{name}" for name in ELEMENTWISE]:
        yield f"{config['optimizer']['_target_']} may not treat every number by itself, as {', '.join(ELEMENTWISE)} do."
    if trainer["devices"] != 1 or trainer.get("strategy", "auto") != "auto" or trainer.get("num_nodes", 1) != 1:
        yield "a stack of seeds has one device, so leave trainer.devices, strategy and num_nodes alone."
    if trainer.get("gradient_clip_val") is not None and trainer.get("gradient_clip_algorithm") != "value":
        yield "trainer.gradient_clip_val would clip the norm over all seeds (gradient_clip_algorithm=value can be had)."
    if str(trainer.get("precision")).startswith("16"):
        yield "with trainer.precision=16-mixed a step that one seed cannot take would be lost to all (bf16-mixed can)."
    if config["compile"] == CUDA_GRAPHS and not has_cuda(trainer["accelerator"]):
        yield "compile=cudagraphs replays operators on a GPU of NVIDIA's, which the run does not have."
    if config["compile"] and trainer.get("accumulate_grad_batches", 1) != 1:
        yield "CUDA graphs use the memory of gradients again, so trainer.accumulate_grad_batches cannot be had."
    if config["profile_steps"]:
        yield f"profile_steps={config['profile_steps']} profiles the stages of one model."
    if config["logger"]["_target_"] is not None and not single:
        yield "a logger does not follow a stack of seeds. The run folders hold everything; add logger=none."


def has_cuda(accelerator: str) -> bool:
    """Whether a trainer with this setting trains on a GPU of NVIDIA's."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _targets(node: Any) -> Iterator[str]:
    """Every class that a configuration names."""
    if isinstance(node, Mapping):
        if node.get("_target_") is not None:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)


def refuse_different_data(infos: Sequence[CorpusInfo], loaders: Sequence[Sequence[Any]]) -> None:
    """Refuse seeds whose data do not fit together.

    Args:
        infos: the corpus as each seed has it; only the classes' numbers may differ.
        loaders: those of each seed, in the same order.

    Raises:
        MercError: models would differ in shape, or epochs in their number of batches.
    """
    shapes = {(tuple(info.dims.items()), info.label_names, info.speaker_slots) for info in infos}
    counts = {tuple(map(len, own)) for own in loaders}
    if len(shapes) > 1 or len(counts) > 1:
        raise MercError(f"Several seeds cannot be trained at once: their data differ in shape or in batches. {ALONE}")
