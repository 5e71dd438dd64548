"""Where a command's settings come from: flags, then the environment, then one TOML file, all by the same names."""

import difflib
import os
import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path

from cyclopts import App
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Env

from reidserve.errors import UsageError

FLAG = "flag"
_FILE = "config"


class Sources:
    """Fills what the flags did not say, from the environment and then from the file that `--config` names.

    A setting `--max-memory` is REIDSERVE_MAX_MEMORY in the environment and max-memory or max_memory in the file.

    Attributes:
        found: by a setting's name, where its value came from: a flag, a variable of the environment, or the file; what
            is not here has its default.
    """

    def __init__(self, prefix: str, *, switches: Collection[str], others: Collection[str]) -> None:
        """Take settings from variables that begin with `prefix`, but for `others`, which are not the command's.

        `switches` are flags that say what the command does, not what it is told: they are nowhere else.
        """
        self.found: dict[str, str] = {}
        self._prefix = prefix
        self._switches = switches
        self._others = others

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Fill the arguments that have no value yet; cyclopts calls this between reading flags and converting.

        Raises:
            UsageError: a name that is no setting, or a file that is no TOML.
        """
        if commands:
            # A command of this one has settings of its own.
            return
        names = {argument.name.removeprefix("--") for argument in arguments} - {*self._switches}
        self._check_environment(names)
        Env(self._prefix, command=False)(app, commands, arguments)
        for argument in arguments:
            if argument.name == f"--{_FILE}" and argument.tokens:
                path = argument.tokens[0].value
                # Of this app cyclopts would leave out what is named like one of its commands: keys.
                Dict(_read(Path(path), names - {_FILE}), source=path)(App(), commands, arguments)
        self.found = {
            argument.name.removeprefix("--"): _origin(argument.tokens[0].source, argument.tokens[0].keyword)
            for argument in arguments
            if argument.tokens
        }

    def _check_environment(self, names: Iterable[str]) -> None:
        known = {self._prefix + name.upper().replace("-", "_") for name in names}
        for variable in sorted(os.environ):
            if variable.startswith(self._prefix) and variable not in known and variable not in self._others:
                raise UsageError(f"{variable} in the environment is no setting{_nearest(variable, known)}")


def _read(path: Path, names: Collection[str]) -> dict[str, object]:
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    for key, value in said.items():
        if key.replace("_", "-") not in names:
            raise UsageError(f"{key} in {path} is no setting{_nearest(key.replace('_', '-'), names)}")
        if isinstance(value, dict):
            raise UsageError(f"{key} in {path} is a table: settings stand one a line, outside tables")
    return said


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f": is {near[0]} meant?" if near else ": reid-serve --help names them"


def _origin(source: str, keyword: str | None) -> str:
    match source:
        case "cli":
            return FLAG
        case "env":
            return str(keyword)
        case _:
            return source
