"""What every command shares: Hydra's start, one clear message for a user's mistake, the exit status."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from hydra_plugins.merc import ExperimentSweeper
from merc.config import CONFIG_MODULE, compose, expand_choices, modules_of, typed
from merc.data.conversation import MODALITIES
from merc.errors import INTERRUPTED, MercError, nearest

# The launchers' plugins bring a schema under the name of our configuration, which only helps.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


def offered_groups(chosen: Mapping[str, Any]) -> str:
    """One line ``group: choice, choice`` for each group of a command; ``--help`` prints them.

    Hydra's own list has the groups of every command, and the files that only others build on (``_base.yaml``).

    Args:
        chosen: group → what is chosen there, as Hydra knows it while a command runs.
    """
    loader = GlobalHydra.instance().config_loader()
    groups = sorted({group.split("@")[0] for group in chosen if not group.startswith("hydra/")})
    offered = {group: _offered(loader.get_group_options(group)) or _nested(loader, group) for group in groups}
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in offered.items() if names)


def _offered(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("_"))


def _nested(loader: ConfigLoader, group: str) -> list[str]:
    """The choices of the folders in a group: ``method/name``."""
    folders = loader.get_group_options(group, ObjectType.GROUP)
    return [
        f"{folder}/{name}" for folder in folders for name in _offered(loader.get_group_options(f"{group}/{folder}"))
    ]


OmegaConf.register_new_resolver("merc.groups", offered_groups, replace=True)


def run(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run a command: compose its configuration from the command line and call ``job`` with it.

    A :class:`MercError` and a mistake in the configuration end in one message on stderr and exit status 1,
    ``hydra.verbose=true`` adds the traceback; a bug keeps its traceback. In a multirun the other jobs still run.

    Args:
        job: does the work.
        config_name: primary configuration in conf/.
    """
    # Hydra otherwise prints and exits by itself, before anybody can explain.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra finds it by itself in an installed wheel, and not in an editable installation.
    Plugins.instance().register(ExperimentSweeper)
    command = Command(job, config_name)
    try:
        sys.argv[1:] = expand_choices([_quote(argument) for argument in sys.argv[1:]])
        refuse_no_choices([argument for argument in sys.argv[1:] if not argument.startswith("-")])
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=config_name)(command)()
    except (MercError, HydraException, OmegaConfBaseException) as error:
        report(error, config_name)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if command.failed:
        sys.exit(1)


@dataclass
class Command:
    """What Hydra calls with a composed configuration: the job, and what becomes of its errors.

    Args:
        job: does the work.
        config_name: primary configuration in conf/.
    """

    job: Callable[[DictConfig], Any]
    config_name: str
    failed: bool = False

    def __call__(self, cfg: DictConfig) -> None:
        """Check what was asked for and do it; explain what goes wrong, so that other jobs of a multirun still run."""
        try:
            settings = HydraConfig.get()
            check_overrides(cfg, settings.overrides.task, settings.runtime.choices, self.config_name)
            self.job(cfg)
        except Exception as error:
            report(error, self.config_name)
            self.failed = True


PATHS = ("ckpt", "out", "run_dir", "run_root", "data.store", "source.path", "source.annotations")
"""Keys that name a file or a folder, whatever its name looks like."""

_NUMBER_OR_SWITCH = re.compile(r"[+-]?(\.?\d[\w.+-]*|inf|nan|true|false)", re.IGNORECASE)


def _quote(argument: str) -> str:
    """Quote a value with an equals sign, which Hydra's grammar refuses, and a path that it takes for a number."""
    key, _, value = argument.partition("=")
    equals = re.fullmatch(r"[^'\"\[{(,]*=[^'\"\]}),]*", value)
    number = key.lstrip("+") in PATHS and _NUMBER_OR_SWITCH.fullmatch(value)
    return f'{key}="{value}"' if (equals or number) and not argument.startswith("-") else argument


def refuse_no_choices(overrides: Iterable[str]) -> None:
    """Refuse null, switches and numbers as the choice of a group, for which Hydra has nothing but a traceback.

    Args:
        overrides: as Hydra takes them, sweeps among them; what cannot be read is left for Hydra to refuse.

    Raises:
        MercError: an override gives a group what cannot be the name of a choice.
    """
    for override in overrides:
        try:
            parsed = OverridesParser.create().parse_override(override)
        except HydraException:
            continue
        group = str(parsed.key_or_group)
        if not parsed.is_delete() and (files(CONFIG_MODULE) / group).is_dir():
            _refuse_no_names(typed(str(parsed.get_key_element()).lstrip("+")), group, parsed)


def _refuse_no_names(key: str, group: str, override: Override) -> None:
    """Refuse the values of an override of a group that are no text, list or dictionary."""
    values = override.sweep_iterator() if override.is_discrete_sweep() else [override.value()]
    for value in values:
        if value is None or isinstance(value, bool | int | float):
            given = "null" if value is None else str(value).lower()
            options = _choices(group)
            hint = " Did you mean 'none'?" if not value and "none" in options else nearest(given, options)
            listed = f" ({', '.join(options)})" if options else ""
            left_out = "" if hint else " Name one of them, or leave it out for the default."
            raise MercError(f"{key}={given} is no choice of '{key}'{listed}.{hint}{left_out}")


def report(error: Exception, config_name: str) -> None:
    """Print an error: a mistake of the user in one line, anything else with its traceback."""
    message = explain(error, config_name)
    if message is None or _verbose():
        traceback.print_exception(error)
    if message is not None:
        print(f"Error: {message}", file=sys.stderr)


def _verbose() -> bool:
    """Whether the command line says so: the configuration may not exist yet."""
    return any(argument.startswith("hydra.verbose=") and not argument.endswith("=false") for argument in sys.argv)


def explain(error: Exception, config_name: str) -> str | None:
    """A mistake in one sentence, of composition with the nearest valid name; None when it is no mistake of the user."""
    if isinstance(error, MercError):
        return str(error)
    text = str(error).strip()
    if isinstance(error, MissingMandatoryValue):
        return f"{text.splitlines()[0]}. Give it a value on the command line: key=value."
    if isinstance(error, InterpolationResolutionError):
        return f"The configuration cannot be resolved: {text.splitlines()[0]}"
    if isinstance(error, OverrideParseException):
        return (
            f"'{error.override}' cannot be read. Write key=value, and values with special characters in quotes that "
            "the shell leaves there: 'key=\"a, b\"'."
        )
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, choice = error.missing_cfg_file.rsplit("/", 1)
        options = _offered(error.options or [])
        if not options:  # Hydra does not look into folders
            group, choice = error.missing_cfg_file.split("/", 1)
            options = sorted(_in_folders(group))
        listed = f" ({', '.join(options)})" if options else ""
        return f"'{choice}' is no choice of '{group}'{listed}.{nearest(choice, options)}"
    if unknown := re.search(r"Could not (?:override|delete(?: from config\.)?) '([^']+)'", text):
        key = typed(unknown.group(1))
        hint = nearest(key, _valid_keys(unknown.group(1), config_name))
        return f"The configuration has no key '{key}'.{hint} --cfg job prints every key."
    if mandatory := re.search(r"You must specify '([^']+)'", text):
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"Say which '{mandatory.group(1)}' to use: {mandatory.group(1)}={'|'.join(options)}."
    if several := re.search(r"Ambiguous value for argument '(.+)'$", text.splitlines()[0]):
        return _explain_several(several.group(1), config_name)
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ and str(error.__cause__) else ""
    return f"{text.splitlines()[0]}{cause}"


def _explain_several(override: str, config_name: str) -> str:
    """What to do instead of giving several values where Hydra takes one."""
    key, _, values = override.partition("=")
    group = (files(CONFIG_MODULE) / key.lstrip("+").split("@")[0]).is_dir()
    ways = ["Add -m to train one run for each"] if config_name == "train" else []
    if not group:  # several choices of a group make no list
        ways.append(f"write '{key}=[{values}]' for a list")
    way = ", or ".join(ways) or "Give one of them"
    return f"{typed(key)}={values} is several values. {way[0].upper()}{way[1:]}."


def _choices(group: str) -> list[str]:
    """The choices of a group of merc's own; ``method/name`` where they lie in folders."""
    entries = (files(CONFIG_MODULE) / group).iterdir()
    names = [entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml")]
    return _offered(names) or sorted(_in_folders(group))


def _in_folders(group: str) -> Iterator[str]:
    """The choices in the folders of a group of merc's own: ``method/name``."""
    for folder in (files(CONFIG_MODULE) / group).iterdir():
        if folder.is_dir():
            yield from (f"{folder.name}/{entry.name.removesuffix('.yaml')}" for entry in folder.iterdir())


def _valid_keys(unknown: str, config_name: str) -> list[str]:
    """Groups and dotted keys, with the other choices of the command line where these compose."""
    others = [a for a in sys.argv[1:] if "=" in a and not a.startswith(("-", f"{unknown}=", "+", "hydra.", "hydra/"))]
    try:
        config = compose([a for a in others if "," not in a], config_name)
    except (HydraException, OmegaConfBaseException):
        config = compose([], config_name)
    groups = [entry.name for entry in files(CONFIG_MODULE).iterdir() if entry.is_dir()]
    own_choices = [f"{stage}.{name}" for stage in groups if modules_of(stage) for name in (*MODALITIES, "default")]
    return [*groups, *own_choices, *_dotted(OmegaConf.to_container(config))]


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def check_overrides(cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any], config_name: str) -> None:
    """Refuse what composes but cannot be meant: keys that nothing reads, deletions, values of another kind.

    Args:
        cfg: the configuration that was composed.
        overrides: those that it was composed with.
        choices: group → what is chosen there, as Hydra lists it.
        config_name: primary configuration in conf/.

    Raises:
        MercError: an override cannot be meant.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    keys = {override.key_or_group: override for override in parsed if _group(override) not in choices}
    for key, override in keys.items():
        if override.is_add():
            _refuse_unread(cfg, key)
        if override.is_delete() and not _reaches_a_constructor(cfg, key):
            raise MercError(
                f"'{key}' cannot be left out of the configuration. Where a group can do without: {key}=none."
            )
    kept = [key for key, override in keys.items() if not override.is_delete()]
    if kept:
        selection = [str(override.input_line) for override in parsed if _group(override) in choices]
        _refuse_other_kinds(cfg, compose(selection, config_name), kept)


def _group(override: Override) -> str:
    """The group that an override chooses in, as Hydra lists it: with its package where that is not the group's own."""
    return f"{override.key_or_group}@{override.package}" if override.package else str(override.key_or_group)


def _refuse_unread(cfg: DictConfig, key: str) -> None:
    """Refuse an added key, unless it reaches a constructor, which checks it, or an interpolation reads it."""
    text = OmegaConf.to_yaml(cfg)
    read = any(f"${{{name}}}" in text for name in (key, *_parents(key)))
    if not read and not _reaches_a_constructor(cfg, key):
        hint = nearest(key, set(_dotted(OmegaConf.to_container(cfg))) - {key})
        raise MercError(f"Nothing reads the added key '{key}'. Leave it out, or correct its name.{hint}")


def _reaches_a_constructor(cfg: DictConfig, key: str) -> bool:
    nodes = [OmegaConf.select(cfg, parent) for parent in _parents(key)]
    return any(isinstance(node, DictConfig) and "_target_" in node for node in nodes)


def _parents(key: str) -> list[str]:
    """``a.b.c`` → the nodes that hold it, ``a.b`` and ``a``."""
    return [key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)]


def _refuse_other_kinds(cfg: DictConfig, defaults: DictConfig, keys: Iterable[str]) -> None:
    """Refuse a value that is no number, switch, list or text where the default is one, and what is no path."""
    for key in keys:
        default, value = OmegaConf.select(defaults, key), OmegaConf.select(cfg, key)
        # Lightning takes several kinds of value for one argument, and checks them itself.
        kind = None if key.startswith("trainer.") else _other_kind(key, default, value)
        if kind is not None:
            hint = f" A number in quotes is text: '{key}=\"{value}\"'." if kind == "text" else ""
            raise MercError(
                f"{key}={value} is not {kind}, which is needed there. The default is {key}={default}.{hint}"
            )


def _other_kind(key: str, default: Any, value: Any) -> str | None:
    """What a value should be instead; None when it is fine."""
    if key in PATHS:
        return None if isinstance(value, str) or value is default is None else "a path"
    if isinstance(default, str):
        return "text" if isinstance(value, bool | int | float) else None
    kind = next((kind for kind, types in _KINDS.items() if type(default) in types), None)
    return None if kind is None or type(value) in _KINDS[kind] else kind


_KINDS: dict[str, tuple[type, ...]] = {
    "true or false": (bool,),
    "a whole number": (int,),
    "a number": (float, int),
    "a list [a,b]": (ListConfig,),
}
