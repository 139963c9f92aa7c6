"""Chats as a model reads them: lists of messages, written out by its tokenizer's template."""

from typing import Any

import jinja2

from headprune.errors import DataError, first_line
from headprune.tasks.data import Table, text_of


def prose_of(table: Table, row: int, column: str, tokenizer: Any) -> str:
    """Return the text of a row: as it stands there, or a chat by the model's template.

    Raises:
        DataError: The cell is neither, or the model has no template that takes it.
    """
    cell = table.rows[row][column]
    if not is_chat(cell):
        return text_of(table, row, column, may_be_empty=True)
    where = f"--data {table.name}"
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"column {column!r} holds chats, and the model's tokenizer has no chat template to write them out",
            where=where,
            hint="name a column of texts with --text, or give the tokenizer a chat template",
        )
    try:
        return str(tokenizer.apply_chat_template(cell, tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        # Templates raise what they like about the order of roles and the keys of messages.
        raise DataError(
            f"{table.place(row)} has a chat in column {column!r} that the model's chat template refuses: {first_line(error)}",
            where=where,
            hint="give the messages as the template wants them, or remove the row",
        ) from error


def is_chat(cell: Any) -> bool:
    """Whether a cell is a list of messages, each with a role and a content that are texts."""
    return (
        isinstance(cell, list)
        and bool(cell)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in cell
        )
    )
