"""How a command ends that was stopped by what it met."""


def is_lawful(code, err):
    """Whether a command left with 2 and said why in three parts."""
    return (
        code == 2
        and sum(line.startswith("error: ") for line in err.splitlines()) == 1
        and "\n  in:   " in err
        and "\n  try:  " in err
        and "unexpected" not in err
        and "Traceback" not in err
    )
