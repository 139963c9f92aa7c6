"""Rows as a command reads them, without the model."""

from types import SimpleNamespace


def read_rows(name: str) -> str:
    """Read a data file as ``--data`` does, as rows of classification (or as texts); return what was read."""
    from headprune.tasks.classification import to_examples
    from headprune.tasks.data import choose_columns, read_table, texts_of

    table = read_table(name)
    if name.endswith(".txt"):
        columns = choose_columns(table, num_texts=(1,), needs_label=False)
        return str([texts_of(table, row, columns) for row in range(len(table.rows))])
    columns = choose_columns(table, num_texts=(1, 2))
    config = SimpleNamespace(num_labels=2, problem_type=None, id2label={0: "LABEL_0", 1: "LABEL_1"})
    return str(to_examples(table, columns, None, config, 128))
