"""What a person reads of a model that was healed."""

from rich.console import Group, RenderableType

from headprune.report.tables import prose
from headprune.report.terminal import prune_table
from headprune.results import Results


def heal_table(results: Results, *, directory: str) -> RenderableType:
    """Show what was learned from whom, then before and after, the proofs, and where the model lies."""
    heal = results.heal
    if heal is None:
        return prune_table(results, directory=directory)
    how = f"adapters of rank {heal.lora}, merged," if heal.lora else "all weights"
    told = prose(
        f"{how} trained towards {heal.teacher.get('name')}: {heal.steps:,} steps on {heal.trained_on:,} rows\n"
        f"{heal.objective} on {heal.held_out:,} other rows: {heal.loss[0]:.4g} before, {heal.loss[1]:.4g} after\n",
        style="dim",
    )
    return Group(told, prune_table(results, directory=directory))
