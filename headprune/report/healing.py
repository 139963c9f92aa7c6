"""What a person reads of healing: what was trained, the metric before it and after it, and how to heal what wasn't."""

from shlex import quote

from rich.text import Text

from headprune.artefact import Heal
from headprune.report.numbers import interval, number
from headprune.report.terminal import Row, Sheet, line
from headprune.results import Results


def training_of(heal: Heal) -> str:
    """Say what was trained, and whether that was kept."""
    weights = "the attentions' weights" if heal.weights == "attention" else "all weights"
    if heal.lora:
        where = ", of the attentions alone" if heal.weights == "attention" else ""
        weights = f"adapters of rank {heal.lora}{where}, merged,"
    ends = f"{heal.loss[0]:.4g} before, {heal.loss[1]:.4g} after"
    kept = (
        f"\n{heal.share:.0%} of the change was kept, which is nearest to it"
        if heal.share < 1
        else ""
    )
    if not heal.kept:
        kept = "\nthat didn't help: the weights are those from before the training"
    return (
        f"{weights} trained towards {heal.teacher.get('name')}: {heal.steps:,} steps on {heal.trained_on:,} rows\n"
        f"{heal.objective} on {heal.held_out:,} other rows: {ends}{kept}\n"
    )


def stages_table(results: Results) -> Sheet:
    """Show the metric of the whole model, of the cut one, and of the healed one."""
    stages = [
        ("before", results.before, None, None),
        ("cut", results.cut, results.cut_difference, results.cut_difference_interval),
        ("healed", results.after, results.difference, results.difference_interval),
    ]
    rows = [
        Row(
            (
                name,
                number(one.value),
                interval(one.interval),
                "" if change is None else number(change, sign="+"),
                "" if ends is None else interval(ends, sign="+"),
            )
        )
        for name, one, change, ends in stages
        if one is not None
    ]
    metric = results.after.metric if results.after else ""
    titles = ("", metric, "95 % interval", "change", "95 % interval")
    return Sheet(rows, titles=titles, right=frozenset({1, 2, 3, 4}))


def how_to_heal(results: Results, directory: str) -> list[Text]:
    """Say what would heal a model that lost more than noise, and wasn't healed."""
    if results.heal is not None or not results.is_worse:
        return []
    return [line(("heal it:   ", "dim"), f"headprune heal {quote(directory)}")]
