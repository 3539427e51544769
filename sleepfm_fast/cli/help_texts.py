"""Help of options: the docstring below a field, broken where the terminal ends and not where its source does."""

from __future__ import annotations

import re
import typing

__all__ = ["join_lines"]


def join_lines(options: type) -> None:
    """Make one paragraph of each field's docstring for the help of a command.

    Tyro takes an indented line, as every one but the first is, for a line of its own: at any width the help would break
    where the source does.

    Parameters
    ----------
    options : type
        Dataclass of a command's options; docstrings of several lines are added to its annotations.
    """
    import docstring_parser
    from typing_extensions import Doc

    annotated: typing.Any = typing.Annotated  # for type checkers, its arguments are no types here
    hints = typing.get_type_hints(options, include_extras=True)
    for field in docstring_parser.parse_from_object(options).params:
        text = field.description
        if text and "\n" in text and field.arg_name in hints:
            paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
            options.__annotations__[field.arg_name] = annotated[hints[field.arg_name], Doc("\n\n".join(paragraphs))]
