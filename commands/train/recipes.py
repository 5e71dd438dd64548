"""Recipes for people who copy and edit them."""

from typing import Annotated

from cyclopts import Parameter

from reidserve.commands.console import DONE, Json, print_facts, print_json, print_lines


def recipes(name: Annotated[str | None, Parameter(show_default=False)] = None, /, *, json: Json = False) -> int:
    """List the recipes, or print one to copy: `reid-train recipes pcb > mine.toml`.

    A recipe names what differs from the defaults; a run writes all of its settings to OUT/settings.toml.

    Args:
        name: The recipe to print.
    """
    from reidserve.export.train.recipes import read_recipe, recipe_names, recipe_path

    texts = {known: recipe_path(known).read_text(encoding="utf-8") for known in ([name] if name else recipe_names())}
    if name is None:
        about = {known: _about(text) for known, text in texts.items()}
        print_json(about) if json else print_facts(about)
    elif json:
        print_json(read_recipe(recipe_path(name)).values())
    else:
        print_lines(texts[name].splitlines())
    return DONE


def _about(text: str) -> str:
    """What the comment that a recipe begins with says."""
    lines = text.splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.lstrip("# ") for line in comment)
