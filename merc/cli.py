"""What every command shares: Hydra's start, one clear message for a user's mistake, the exit status."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from merc.config import CONFIG_MODULE, compose
from merc.errors import MercError, nearest

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as shells have it."""


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
    failures: list[Exception] = []

    def guarded(cfg: DictConfig) -> None:
        try:
            _refuse_unread_additions(cfg)
            job(cfg)
        except Exception as error:
            _report(error, config_name)
            failures.append(error)

    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=config_name)(guarded)()
    except (HydraException, OmegaConfBaseException) as error:
        _report(error, config_name)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if failures:
        sys.exit(1)


def _report(error: Exception, config_name: str) -> None:
    message = str(error) if isinstance(error, MercError) else _explain(error, config_name)
    if message is None or _verbose():
        traceback.print_exception(error)
    if message is not None:
        print(f"Error: {message}", file=sys.stderr)


def _verbose() -> bool:
    """Whether the command line says so: the configuration may not exist yet."""
    return any(argument.startswith("hydra.verbose=") and not argument.endswith("=false") for argument in sys.argv)


def _explain(error: Exception, config_name: str) -> str | None:
    """A composition error in one sentence with the nearest valid name; None when it is no mistake of the user."""
    text = str(error).strip()
    if isinstance(error, InterpolationResolutionError | MissingMandatoryValue):
        return f"The configuration cannot be resolved: {text.splitlines()[0]}"
    if isinstance(error, OverrideParseException):
        return f"{text.splitlines()[0]} Write key=value, and quote values that hold special characters."
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, choice = error.missing_cfg_file.rsplit("/", 1)
        return f"'{choice}' is no choice of '{group}' ({', '.join(error.options)}).{nearest(choice, error.options)}"
    if unknown := re.search(r"Could not (?:override|delete(?: from config\.)?) '([^']+)'", text):
        key = unknown.group(1)
        hint = nearest(key, _valid_keys(key, config_name))
        return f"The configuration has no key '{key}'.{hint} --cfg job prints every key."
    if mandatory := re.search(r"You must specify '([^']+)'", text):
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"Say which '{mandatory.group(1)}' to use: {mandatory.group(1)}={'|'.join(options)}."
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ and str(error.__cause__) else ""
    return f"{text.splitlines()[0]}{cause}"


def _valid_keys(unknown: str, config_name: str) -> list[str]:
    """Dotted keys and groups of the configuration with the other choices of the command line, as far as they compose."""
    others = [a for a in sys.argv[1:] if "=" in a and not a.startswith(("-", f"{unknown}=", "+", "hydra.", "hydra/"))]
    try:
        config = compose([a for a in others if "," not in a], config_name)
    except (HydraException, OmegaConfBaseException):
        config = compose([], config_name)
    groups = [entry.name for entry in files(CONFIG_MODULE).iterdir() if entry.is_dir()]
    return [*groups, *_dotted(OmegaConf.to_container(config))]


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def _refuse_unread_additions(cfg: DictConfig) -> None:
    """Refuse a key added with ``+`` that nothing reads.

    Whatever reaches a constructor is checked there, an interpolation reads its key, and groups are Hydra's business.
    """
    hydra_config = HydraConfig.get()
    text = OmegaConf.to_yaml(cfg)
    for override in OverridesParser.create().parse_overrides(list(hydra_config.overrides.task)):
        key = override.key_or_group
        added = override.is_add() and key not in hydra_config.runtime.choices
        read = any(f"${{{name}}}" in text for name in _with_parents(key))
        if added and not read and not _reaches_a_constructor(cfg, key):
            hint = nearest(key, _dotted(OmegaConf.to_container(cfg)))
            raise MercError(f"Nothing reads the added key '{key}'. Leave it out, or correct its name.{hint}")


def _reaches_a_constructor(cfg: DictConfig, key: str) -> bool:
    nodes = [OmegaConf.select(cfg, parent) for parent in _with_parents(key)[1:]]
    return any(isinstance(node, DictConfig) and "_target_" in node for node in nodes)


def _with_parents(key: str) -> list[str]:
    """``a.b.c`` → itself and the nodes that hold it: ``a.b.c``, ``a.b``, ``a``."""
    return [key, *(key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1))]
