"""Rows as a command reads them, without the model."""

from types import SimpleNamespace


def read_rows(name: str) -> str:
    """Read a data file as ``--data`` does, as rows of classification (or as texts); return what was read."""
    from headprune.tasks.batches import InputFormat
    from headprune.tasks.columns import choose_columns, examples_of
    from headprune.tasks.rows import read_table
    from headprune.tasks.task import get_task

    table = read_table(name)
    if name.endswith(".txt"):
        columns = choose_columns(table, num_texts=(1,), needs_label=False)
        return str([example.texts for example in examples_of(table, columns)])
    columns = choose_columns(table, num_texts=(1, 2))
    config = SimpleNamespace(num_labels=2, problem_type=None, id2label={0: "LABEL_0", 1: "LABEL_1"})
    task = get_task("classification")
    return str(task.to_examples(table, columns, InputFormat(None, 128, config=config)))
