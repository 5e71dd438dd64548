"""Recipes: settings as TOML files that people copy and edit, and settings changed by their dotted names."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from reidserve.errors import ExportError, UsageError
from reidserve.export.train.settings import Settings, Stage

_FOLDER = Path(__file__).with_name("recipes")
_STAGE = re.compile(r"stages\.([1-9][0-9]*)\.")
_LIKE = 0.6
"""How alike names must be for one to be offered for the other, 0 to 1."""

_Section = TypeVar("_Section")


class _Typed(str):
    """A value as it was typed on the command line: TOML, or a bare word."""


def recipe_names() -> list[str]:
    """The names of our own recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def recipe_path(name: str) -> Path:
    """The file of one of our recipes, or the user's own, which ends in .toml.

    Raises:
        UsageError: there is no such recipe.
    """
    if name in recipe_names():
        return _FOLDER / f"{name}.toml"
    if name.endswith(".toml"):
        return Path(name)
    nearest = "".join(f"; did you mean {near}?" for near in get_close_matches(name, recipe_names(), 1))
    raise UsageError(
        f"a recipe is {', '.join(recipe_names())} or a file of your own ending in .toml, got {name}{nearest}"
    )


def read_recipe(path: Path) -> Settings:
    """The settings of a file; what it does not name is as by default.

    Raises:
        UsageError: it does not read, names what is no setting, or gives a value that is none of its setting.
    """
    try:
        # Some editors begin a file with a byte order mark.
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {error}") from error
    try:
        return _changed(Settings(), table)
    except (UsageError, ExportError) as error:
        raise UsageError(f"{path}: {error}") from error


def change(settings: Settings, changes: Sequence[str]) -> Settings:
    """A copy of settings with others of their values: NAME=VALUE, such as "optim.lr=3e-4" or "stages.2.epochs=60".

    Values are in TOML; text needs no quotes. A stage that follows the last is added. All are changed at once, so that
    their order does not matter.

    Raises:
        UsageError: a name is no setting's or is given twice, or a value is none of its setting.
    """
    given: dict[str, str] = {}
    for text in changes:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise UsageError(f"expected NAME=VALUE, such as optim.lr=3e-4, got {text}")
        if name not in _names(name):
            raise UsageError(_unknown(name))
        if name in given:
            raise UsageError(f"{name} is set twice, to {given[name]} and {value}")
        given[name] = value
    table: dict[str, Any] = {}
    for name, value in given.items():
        *sections, last = name.split(".")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = _Typed(value)
    return _changed(settings, table)


def write_recipe(settings: Settings) -> str:
    """All settings as a file that reads back equal, floats to the last bit."""
    parts = [_written(settings)]
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value):
            parts.append(f"[{one.name}]\n{_written(value)}")
    parts += [f"[[stages]]\n{_written(stage)}" for stage in settings.stages]
    return "\n".join(parts)


def _written(section: Any) -> str:  # noqa: ANN401  # any dataclass
    """The plain values of a section, a line each."""
    values = {one.name: getattr(section, one.name) for one in fields(section)}
    return "".join(
        f"{name} = {_toml(value)}\n"
        for name, value in values.items()
        if not is_dataclass(value) and not (isinstance(section, Settings) and name == "stages")
    )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # JSON leaves one character as it is that TOML does not.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _changed(section: _Section, table: Mapping[str, Any], prefix: str = "") -> _Section:
    """A copy of settings, or of a section of them, with the values of a table."""
    kinds = get_type_hints(type(section))
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + (_toml(key) if "." in key else key)
        if key not in kinds:
            raise UsageError(_unknown(name))
        before = getattr(section, key)
        if isinstance(section, Settings) and key == "stages":
            values[key] = _changed_stages(section.stages, value)
        elif not is_dataclass(before):
            values[key] = _value(name, kinds[key], value)
        elif isinstance(value, Mapping):
            values[key] = _changed(before, value, f"{name}.")
        else:
            raise UsageError(f"{name} must be a section, [{name}], got {value!r}")
    return replace(section, **values)  # type: ignore[type-var]


def _changed_stages(stages: Sequence[Stage], tables: object) -> tuple[Stage, ...]:
    """Stages with the values of tables: a file's list of them, or some by their numbers."""
    if isinstance(tables, list) and tables:
        tables = {str(number): table for number, table in enumerate(tables, 1)}
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise UsageError(f"stages must be sections, [[stages]], got {tables!r}")
    changed = list(stages)
    for number in sorted(map(int, tables)):
        if number > len(changed) + 1:
            raise UsageError(f"stages.{number} is set, but there is no stage {number - 1}: stages are counted from 1")
        before = changed[number - 1] if number <= len(changed) else Stage()
        changed[number - 1 :] = [_changed(before, tables[str(number)], f"stages.{number}."), *changed[number:]]
    return tuple(changed)


def _value(name: str, kind: Any, value: object) -> object:  # noqa: ANN401  # a type
    if isinstance(value, _Typed):
        parsed = _parsed(value)
        value = str(value) if kind is str and not isinstance(parsed, str) else parsed
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name} must be {_words(kind)}, got {value!r}") from error


def _parsed(text: str) -> object:
    if text.startswith("[") and text.endswith("]"):
        return [_parsed(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return str(text)


def _words(kind: Any) -> str:  # noqa: ANN401  # a type
    """What is expected of a value, for people."""
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        item, *more = get_args(kind)
        count = 1 if more == [...] else 1 + len(more)
        return f"a list such as [{', '.join([_EXAMPLES[item]] * count)}]"
    if get_args(kind):
        return " or ".join(map(_words, get_args(kind)))
    return _WORDS[kind]


_WORDS = {bool: "true or false", int: "a whole number", float: "a number such as 0.5", str: "text"}
_EXAMPLES = {str: '"head"', float: "0.5"}


def _names(like: str) -> list[str]:
    """All dotted names, of the stage that a name is of."""
    found = _STAGE.match(like)
    number = found[1] if found else "1"
    return [name.replace("stages.1.", f"stages.{number}.") for name in Settings().values()]


def _unknown(name: str) -> str:
    """Say that a setting is not there, and which one is like it, as a whole and in its last word."""

    def likeness(known: str) -> float:
        pairs = ((name.lower(), known), (name.lower().rpartition(".")[2], known.rpartition(".")[2]))
        return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs)

    names = _names(f"{name}.")
    inner = [known for known in names if known.startswith(f"{name}.")]
    if inner:
        return f"{name} holds several settings, set one: {', '.join(inner)}"
    sections = sorted({known.partition(".")[0] for known in names if "." in known})
    nearest = max([*names, *(section for section in sections if section != name)], key=likeness)
    if likeness(nearest) / 2 >= _LIKE:
        return f"there is no setting {name}; did you mean {nearest}?"
    return f"there is no setting {name}; the sections are {', '.join(sections)}"
