"""The command line of the commands that need neither torch nor Hydra: names, and key=value for a file in conf/."""

import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import yaml

from merc.errors import INTERRUPTED, MercError, nearest


def run(command: Callable[[list[str], dict[str, Any]], None], description: str, config_name: str) -> None:
    """Run a command with the names and settings of the command line, or explain it.

    A :class:`MercError` ends in one message on stderr and exit status 1, Ctrl-C quietly.

    Args:
        command: does the work.
        description: what ``--help`` prints, the documentation of a module, say.
        config_name: file in conf/ with every key and its default.
    """
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        print(help_text(description.replace("``", ""), config_name))
        return
    try:
        command(*parse(arguments, config_name))
    except MercError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def parse(arguments: Sequence[str], config_name: str) -> tuple[list[str], dict[str, Any]]:
    """Split a command line into names and settings.

    Args:
        arguments: those behind the name of the command.
        config_name: file in conf/ with every key and its default.

    Returns:
        the names in order, among them paths like ``runs/mine/seed=1``; every key with its value.

    Raises:
        MercError: there is no such key or option, or a value cannot be read.
    """
    names = [argument for argument in arguments if not _is_setting(argument)]
    for option in (name for name in names if name.startswith("-")):
        raise MercError(f"There is no option {option}. Settings are written key=value; --help lists them.")
    settings: dict[str, Any] = yaml.safe_load(_text(config_name))
    for key, _, text in (argument.partition("=") for argument in arguments if _is_setting(argument)):
        if key not in settings:
            raise MercError(f"There is no key '{key}'.{nearest(key, settings)} --help lists every key.")
        settings[key] = _value(key, text, settings[key])
    return names, settings


def help_text(description: str, config_name: str) -> str:
    """A description and the commented settings of a command."""
    return f"{description.strip()}\n\n{_text(config_name).strip()}"


def _is_setting(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return bool(equals) and key.isidentifier()


def _value(key: str, text: str, default: Any) -> Any:
    if text == "null":
        return None
    kind = str if default is None else type(default)
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        needed = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise MercError(
            f"{key}={text} is not {needed}, which is needed there. The default is {key}={str(default).lower()}."
        ) from error


def _text(config_name: str) -> str:
    return files("merc.conf").joinpath(f"{config_name}.yaml").read_text(encoding="utf-8")
