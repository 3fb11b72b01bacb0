"""Composing the Hydra configuration, and turning its nodes into objects."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, OmegaConf

from merc.data.conversation import MODALITIES
from merc.errors import MercError

CONFIG_MODULE = "merc.conf"
TRUSTED_PACKAGES = ("merc", "torch", "torchmetrics", "lightning")


def typed(key: str) -> str:
    """A key of Hydra's as the user typed it: ``denoiser/module@denoiser.text`` is long for ``denoiser.text``."""
    return re.sub(r"^(\w+)/module@\1\.", r"\1.", key)


def expand_choices(overrides: Sequence[str]) -> list[str]:
    """Spell out the short form ``stage.modality=choice`` of a module chosen for one modality.

    ``denoiser.text=recurrent`` becomes Hydra's ``denoiser/module@denoiser.text=recurrent``, ``denoiser`` being a stage
    whose modules can be chosen; Hydra looks for the choice in the user's own configuration too. Everything else passes
    unchanged.
    """
    return [_expand_choice(override) for override in overrides]


def _expand_choice(override: str) -> str:
    short = re.fullmatch(r"(\+?)(\w+)\.(\w+)=([\w,]+)", override)
    if short is None:
        return override
    plus, stage, modality, names = short.groups()
    offered = modules_of(stage)
    # Under the name of a modality nothing but a choice can stand, maybe one of the user's own.
    if not offered or (modality not in (*MODALITIES, "default") and not offered.issuperset(names.split(","))):
        return override
    return f"{plus}{stage}/module@{stage}.{modality}={names}"


def modules_of(stage: str) -> set[str]:
    """The modules that can be chosen for one modality of a stage; none for what is no such stage."""
    folder = files(CONFIG_MODULE) / stage / "module"
    return {entry.name.removesuffix(".yaml") for entry in folder.iterdir()} if folder.is_dir() else set()


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """The configuration that a command would see with these overrides."""
    if GlobalHydra.instance().is_initialized():  # inside a running command
        return hydra_compose(config_name, overrides=expand_choices(overrides))
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return hydra_compose(config_name, overrides=expand_choices(overrides))


def choices(overrides: Sequence[str] = (), config_name: str = "train") -> dict[str, str]:
    """What these overrides choose in each configuration group, e.g. ``denoiser/module@denoiser.text`` → ``none``."""
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        config = hydra_compose(config_name, overrides=expand_choices(overrides), return_hydra_config=True)
    return {group: choice for group, choice in config.hydra.runtime.choices.items() if choice is not None}


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dicts, lists and scalars, fit for JSON, YAML and checkpoints."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def instantiate(
    node: Mapping[str, Any], plugins: Sequence[str] = (), kind: type | None = None, /, **arguments: Any
) -> Any:
    """Call the class or function that ``_target_`` names with the other keys of ``node`` and ``arguments``.

    The only place where a configuration becomes code. Unlike Hydra's own function it does not recurse: an object
    builds its own parts, so that every nested ``_target_`` passes here too.

    Args:
        node: a configuration node with a ``_target_``.
        plugins: packages of the user's that may be named beside merc, torch, torchmetrics and lightning.
        kind: the class that the target must be or derive from; None: any class or function.
        arguments: what only the program knows (sizes, other objects); they win over the node's keys.

    Raises:
        MercError: the target lies outside the trusted packages, does not exist, is of another kind, or does not take
            these arguments.
    """
    target = str(target_of(node))
    settings = {key: value for key, value in node.items() if key != "_target_"} | arguments
    called = locate(node, plugins)
    if kind is not None and not (isinstance(called, type) and issubclass(called, kind)):
        raise MercError(f"The configuration names '{target}', which is no {kind.__name__}. Name a class that is one.")
    try:
        return called(**settings)
    except (TypeError, ValueError) as error:
        raise MercError(f"'{target}' cannot be built with {sorted(settings)}: {error}") from error


def locate(node: Mapping[str, Any], plugins: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function that the ``_target_`` of a configuration node names.

    It must be defined in a trusted package, not only be reachable through one: ``torch.os.system`` is not torch's.

    Raises:
        MercError: the target lies outside the trusted packages, does not exist, or is neither class nor function.
    """
    target = str(target_of(node))
    _refuse_untrusted(target, target, plugins)
    try:
        found = get_class(target) if target.rsplit(".", 1)[-1][:1].isupper() else get_method(target)
    except Exception as error:
        raise MercError(f"The configuration names '{target}', which cannot be imported: {error}") from error
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise MercError(f"The configuration names '{target}', which is neither a class nor a function of Python.")
    _refuse_untrusted(target, f"{found.__module__}.{found.__qualname__}", plugins)
    return found


def _refuse_untrusted(target: str, home: str, plugins: Sequence[str]) -> None:
    package = home.split(".")[0]
    if package not in (*TRUSTED_PACKAGES, *plugins):
        origin = "" if home == target else f" ({home})"
        raise MercError(
            f"The configuration names '{target}'{origin}, which lies outside "
            f"{', '.join((*TRUSTED_PACKAGES, *plugins))}. If you trust that package, add plugins=[{package}]."
        )


def target_of(node: Mapping[str, Any]) -> str | None:
    """The name of the class that a configuration node stands for; None: of none.

    Raises:
        MercError: it does not say.
    """
    if "_target_" not in node:
        raise MercError(
            f"A part of the configuration has no _target_, only {', '.join(map(str, node)) or 'nothing'}. Name its "
            "class in its YAML file: _target_: package.Class."
        )
    target: str | None = node["_target_"]
    return target


def check_plugins(plugins: Sequence[str]) -> None:
    """Whether Python finds every package that the user trusts.

    Raises:
        MercError: it does not find one.
    """
    for name in plugins:
        if not str(name).isidentifier() or find_spec(name) is None:
            raise MercError(
                f"plugins=[{name}]: Python finds no package '{name}'. Run the command in the folder that holds it, "
                "install it, or correct its name."
            )
