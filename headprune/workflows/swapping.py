"""Swap heads near the cut, on the rows that chose: half of them proposes, the other half must agree."""

from collections.abc import Sequence

from headprune.anatomy import Anatomy
from headprune.errors import DataError
from headprune.heads import HeadScores, PruningPlan
from headprune.journal import Journal
from headprune.passes import RunContext
from headprune.planning import Constraints, Half, Prices, Swap, Swapped, is_padded, savings, swap
from headprune.subject import Progress, Rows, Subject
from headprune.tasks.rows import Example, set_apart

_FEW = 64
_FEWEST = 16


def swap_if_asked(
    subject: Subject,
    anatomy: Anatomy,
    plan: PruningPlan,
    scores: HeadScores,
    rows: Rows,
    *,
    constraints: Constraints,
    prices: Prices | None,
    progress: Progress,
    journal: Journal | None = None,
) -> PruningPlan:
    """Return the plan with what was swapped, and why; the plan itself where the recipe asks for no swaps.

    Args:
        subject: The model, its heads still there, and the recipe.
        anatomy: Its anatomy.
        plan: Which heads go.
        scores: What it was made from.
        rows: The calibration rows.
        constraints: What the plan keeps to.
        prices: What a target is counted in.
        progress: How to talk meanwhile.
        journal: Where losses are kept, for a run that is stopped.

    Raises:
        DataError: There are too few rows.
    """
    most = subject.recipe.swaps
    if not most or not plan.remove:
        return plan
    if len(rows.examples) < _FEWEST:
        raise DataError(
            f"{len(rows.examples)} calibration rows are too few to swap by: half of them proposes, the others agree",
            where=f"--swaps {most}",
            hint=f"give {_FEWEST} or more (--num-samples), or leave --swaps out",
        )
    parts = set_apart(rows.examples, len(rows.examples) // 2)
    halves = [_half(subject, part, f"swaps, half {place}") for place, part in enumerate(parts, 1)]
    found = swap(
        subject.model,
        anatomy,
        plan.remove,
        halves=(halves[0], halves[1]),
        loss=subject.objective(parts[0][:1]).loss,
        values=scores.importance(),
        constraints=constraints,
        prices=prices,
        most=most,
        context=RunContext(progress.track, progress.notify, journal),
    )
    progress.notify(_told(found.swaps, most))
    return _replanned(plan, found, subject, anatomy)


def _replanned(
    plan: PruningPlan, found: Swapped, subject: Subject, anatomy: Anatomy
) -> PruningPlan:
    kept = anatomy.kept_per_site(found.gone)
    remove = tuple(head for head in anatomy.heads if head in found.gone)
    saves = savings(subject.model, anatomy, remove=remove, pad=is_padded(plan)).as_dict()
    reasons = {name: why for name, why in plan.reasons.items() if not _is_named(name, found.swaps)}
    return plan.model_copy(
        update={
            "remove": remove,
            "kept_per_site": {str(site): len(heads) for site, heads in kept.items()},
            "budget": {**plan.budget, "saves": saves, "swaps": list(map(_as_dict, found.swaps))},
            "reasons": {**reasons, **_reasons(found.swaps)},
        }
    )


def _half(subject: Subject, examples: Sequence[Example], name: str) -> Half:
    """Examples were drawn by chance, so that the first of them are of every kind."""
    few = examples[: max(_FEW, len(examples) // 8)]
    return Half(subject.objective(few).batches, subject.objective(examples).batches, name)


def _told(swaps: tuple[Swap, ...], most: int) -> str:
    if not swaps:
        return "no swap: of no pair near the cut both halves of the rows say that it would help"
    parts = [
        f"{_names(one.pair.goes)} goes for {_names(one.pair.stays)} "
        f"(-{one.gain:.3g} ± {one.standard_error:.2g})"
        for one in swaps
    ]
    more = "; more could be tried" if len(swaps) == most else ""
    return f"swapped, by what the mean loss says (n = {swaps[0].n:,}): {', '.join(parts)}{more}"


def _names(heads: tuple[object, ...]) -> str:
    return "+".join(map(str, heads))


def _as_dict(one: Swap) -> dict[str, object]:
    return {
        "goes": [str(head) for head in one.pair.goes],
        "stays": [str(head) for head in one.pair.stays],
        "gain": one.gain,
        "standard_error": one.standard_error,
        "n": one.n,
    }


def _is_named(name: str, swaps: tuple[Swap, ...]) -> bool:
    return any(name in map(str, (*one.pair.goes, *one.pair.stays)) for one in swaps)


def _reasons(swaps: tuple[Swap, ...]) -> dict[str, str]:
    """Say why; of a head that was swapped twice, the last time."""
    reasons: dict[str, str] = {}
    for one in swaps:
        for goes, stays in zip(one.pair.goes, one.pair.stays, strict=True):
            reasons[str(goes)] = f"removed: swapped for {stays}, by the loss of both"
            reasons[str(stays)] = f"kept: swapped for {goes}, by the loss of both"
    return reasons
