"""An igd-ray command from a YAML file whose keys are the command's long options."""

from __future__ import annotations

import inspect
import os
import sys
import types
import typing
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import typer.core
import typer.main
import yaml

from igd import cli
from igd.errors import ConfigError, IgdError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
NOT_IN_A_JOB = "ray-address"
"""A job runs on the cluster it was submitted to."""


def run(command: str, **beside: str) -> NoReturn:
    """Runs a command with the YAML file that the process was called with; exits with its code.

    Args:
        beside: keys that the file may not have: words after it in this order, and what they are
            where they are left out.
    """
    try:
        if not os.environ.get("RAY_ADDRESS"):
            raise ConfigError("RAY_ADDRESS is not set, and a job starts no cluster of its own: "
                              "run it with `ray job submit`, which sets it")
        file, *words = sys.argv[1:] or [""]
        if not file or len(words) > len(beside):
            expected = " ".join(["one YAML file", *(f"[{key.upper()}]" for key in beside)])
            raise ConfigError(f"expected {expected}, got {len(sys.argv) - 1} arguments")
        beside |= dict(zip(beside, words, strict=False))
        sys.argv = ["igd-ray", *command_line(command, Path(file), **beside)]
    except IgdError as error:
        print(f"igd-ray: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    cli.main()


def command_line(command: str, file: Path, **beside: str) -> list[str]:
    """The words of a command, with the file's values as its options and arguments.

    Args:
        beside: values of keys that are not the file's to say.

    Raises:
        ConfigError: an unknown or missing key, or a value that is not of the option's type.
    """
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    found = group.commands[command]
    known = {_key(param): param for param in found.params}
    known.pop(NOT_IN_A_JOB, None)
    hints = typing.get_type_hints(inspect.unwrap(typing.cast(Any, found.callback)))
    config = read_config(file)
    for key, value in config.items():
        if key not in known:
            raise ConfigError(f"{file}: unknown key {_short(key)} (value {_short(value)}); known: "
                              f"{', '.join(sorted(known))}")
        if key in beside:
            raise ConfigError(f"{file}: {key} is given beside the file (here: {beside[key]!r}); "
                              "leave it out")
        _check(file, key, value, hints[known[key].name])
    config |= beside
    missing = [key for key, param in known.items() if param.required and key not in config]
    if missing:
        raise ConfigError(f"{file}: {', '.join(missing)} missing; see igd-ray {command} --help")
    words: dict[str, list[str]] = {"option": [], "argument": []}
    for key, param in known.items():
        if key in config:
            words[param.param_type_name] += _words(param, config[key])
    return [command, *words["option"], "--", *words["argument"]]


def read_config(file: Path) -> dict[str, Any]:
    """Reads a YAML file of one mapping, small, without aliases or keys that stand twice.

    Raises:
        ConfigError: it is none.
    """
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{file} is larger than {MAX_BYTES} bytes; expected a configuration")
    try:
        _check_structure(file, content)
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        config = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is not valid YAML: {reason}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds {_short(config)}; expected keys with values, such as "
                          "'data: s3://bucket/products'")
    for key, count in Counter(node.value for node, _ in root.value).items():
        if count > 1:
            raise ConfigError(f"{file}: key {_short(key)} stands twice")
    return config


def _check_structure(file: Path, content: bytes) -> None:
    """Refuses, while it is read, what costs far more than its bytes when it is built."""
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{file} uses an alias (*name); write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{file} has more than {MAX_DEPTH} levels; expected keys with "
                              "values or lists of values")


def _key(param: Any) -> str:
    """`seed` for --seed, `data` for the argument DATA."""
    return str(max(param.opts, key=len)).removeprefix("--").replace("_", "-")


def _check(file: Path, key: str, value: object, hint: Any) -> None:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # an option with no default
        hint, = set(typing.get_args(hint)) - {type(None)}
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise ConfigError(f"{file}: {key} is {_short(value)}; expected a list")
        for item in value:
            _check(file, key, item, *typing.get_args(hint))
        return
    kinds: dict[Any, tuple[Any, str]] = {bool: (bool, "true or false"),
                                         int: (int, "a whole number"),
                                         float: ((int, float), "a number")}
    kind, name = kinds.get(hint, (str, "text"))
    if not isinstance(value, kind) or isinstance(value, bool) != (hint is bool):
        raise ConfigError(f"{file}: {key} is {_short(value)}; expected {name}")


def _words(param: Any, value: Any) -> list[str]:
    if isinstance(value, bool):
        return list((param.opts if value else param.secondary_opts)[:1])
    items = [str(item) for item in (value if isinstance(value, list) else [value])]
    return items if param.param_type_name == "argument" else [
        f"--{_key(param)}={item}" for item in items]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
