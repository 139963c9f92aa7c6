"""Scores and plans as values, and as documents. Knows no model, imports no torch."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from headprune.artefact import Artefact
from headprune.errors import PlanError
from headprune.fate import RoleFates
from headprune.heads import COLOURS, HeadId, HeadName, OneHead, SiteId, head_map, select_heads

# Heads that a short text names.
_SHOWN = 4


class Steps(BaseModel):
    """How heads were scored in steps: some were removed, and the others were scored again.

    Args:
        count: How many steps there were.
        keep: The keep ratio that they led to.
        heads: The number of heads that they led to instead, if any.
        constraints: What each step kept to.
        went: The step in which each head was removed, parallel to the scores; 0 for those that are kept.
        reconstructed: How what was left was reconstructed before it was scored again, where it could be; None: not at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    keep: float
    heads: int | None = None
    constraints: dict[str, Any]
    went: tuple[int, ...]
    reconstructed: str | None = None

    @property
    def budget(self) -> str:
        """What they led to."""
        return f"keep={self.keep}" if self.heads is None else f"heads={self.heads}"


class HeadScores(Artefact):
    """The importance of every head (higher matters more), with what it was measured on.

    ``values``, ``standard_errors`` and ``heads`` are parallel; ``standard_errors`` is None for methods that don't sample.
    ``rows`` are keyed hashes of the inputs that were scored, so that they can be kept out of any report (on this machine alone:
    nobody else can compare them with a text). ``metric`` and its direction are there where it is the objective. ``steps`` is
    there where heads were removed step by step, each with the value that it had then. ``products`` are, attention by
    attention, the mean products of the derivatives of two heads, where the method has them. ``one_head`` says of each attention
    what keeping only its best head costs, where the method measures it.
    """

    written_by = "score"

    method: str
    normalize: Literal["none", "layer", "standard"] = "none"
    objective: str = "loss"
    metric: str | None = None
    higher_is_better: bool | None = None
    heads: tuple[HeadName, ...]
    values: tuple[float, ...]
    standard_errors: tuple[float, ...] | None = None
    n: int
    seed: int
    products: dict[str, tuple[tuple[float, ...], ...]] | None = None
    one_head: tuple[OneHead, ...] = ()
    rows: tuple[str, ...] = ()
    steps: Steps | None = None
    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _lists_are_parallel(self) -> "HeadScores":
        lengths = {len(self.heads), len(self.values)}
        if self.standard_errors is not None:
            lengths.add(len(self.standard_errors))
        if self.steps is not None:
            lengths.add(len(self.steps.went))
        if len(lengths) > 1:
            raise ValueError("heads, values and standard_errors must have the same length")
        if len(set(self.heads)) != len(self.heads):
            raise ValueError("a head is listed twice")
        return self

    def by_head(self) -> dict[HeadId, float]:
        """The score of each head."""
        return dict(zip(self.heads, self.values, strict=True))

    def importance(self) -> dict[HeadId, float]:
        """What plans are made by: the scores; heads removed step by step lie below all others, the first lowest."""
        if self.steps is None:
            return self.by_head()
        span = max(self.values) - min(self.values) or 1.0
        lowered = (
            value - 2 * span * (self.steps.count + 1 - step if step else 0)
            for value, step in zip(self.values, self.steps.went, strict=True)
        )
        return dict(zip(self.heads, lowered, strict=True))

    def ranked(self) -> tuple[HeadId, ...]:
        """Heads from least to most important; ties keep the model's order."""
        importance = self.importance()
        return tuple(sorted(self.heads, key=importance.__getitem__))

    def __repr__(self) -> str:
        """In a line: the document is ``to_json()``."""
        return f"<HeadScores {self.method}: {len(self.heads)} heads, n={self.n}>"

    def __str__(self) -> str:
        """What they were measured on, and both ends of the order."""
        layers = len({head.site for head in self.heads})
        n = f", n = {self.n:,}" if self.n else ""
        steps = f", {self.steps.count} steps towards {self.steps.budget}" if self.steps else ""
        ranked = self.ranked()
        return (
            f"{self.method} scores of {len(self.heads)} heads in {layers} layers{n}{steps}\n"
            f"  most important:  {self._with_values(ranked[::-1][:_SHOWN])}\n"
            f"  least important: {self._with_values(ranked[:_SHOWN])}"
        )

    def _with_values(self, heads: Iterable[HeadId]) -> str:
        values = self.by_head()
        errors = dict(zip(self.heads, self.standard_errors or (), strict=False))
        return ", ".join(
            f"{head} {values[head]:.3g}" + (f" ± {errors[head]:.1g}" if head in errors else "")
            for head in heads
        )

    def _repr_html_(self) -> str:
        values, ranked = self.by_head(), self.ranked()
        step = {head: index * len(COLOURS) // len(ranked) for index, head in enumerate(ranked)}
        cells = {head: (COLOURS[step[head]], f"{values[head]:.3g}") for head in self.heads}
        return head_map(str(self).splitlines()[0] + "; the lighter, the more important", cells)


class PlannedSite(BaseModel):
    """What decides which heads of an attention may be removed.

    Args:
        heads: Original indices of its heads, before anything is removed.
        group_size: Query heads that share a key/value head; 1 where none do, or all of them.
        is_even: Whether every group that is kept must keep equally many heads.
        min_heads: The fewest heads to keep.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: tuple[int, ...]
    group_size: int = 1
    is_even: bool = False
    min_heads: int = 0


class PruningPlan(Artefact):
    """Which heads are removed, and why. Pure: it can be read, edited, reviewed and applied later.

    ``budget`` is what was asked and what it came to; ``constraints`` are the settings that shaped the plan; ``sites`` say what
    every attention must keep; ``reasons`` has a sentence for each head whose fate was not decided by its score alone; ``roles``
    say what becomes of the heads of every role.
    :meth:`without` and :meth:`with_removed` edit it; a file that was edited by hand must lose its checksum.
    """

    written_by = "prune"

    remove: tuple[HeadName, ...]
    kept_per_site: dict[str, int]
    sites: dict[str, PlannedSite] = {}
    budget: dict[str, Any] = {}
    constraints: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    roles: RoleFates | None = None
    model: dict[str, Any] = {}

    @property
    def is_padded(self) -> bool:
        """Whether it leaves groups uneven and counts on dead weight to even them out."""
        return self.constraints.get("gqa") == "pad"

    def without(self, *heads: str | HeadId) -> "PruningPlan":
        """Return the plan that keeps these heads, too.

        >>> plan.without("L0.H1", "L2.H7")  # doctest: +SKIP

        Raises:
            PlanError: The plan doesn't remove one of them, or what it would leave can't run.
        """
        named = select_heads(heads, self._heads())
        kept = [str(head) for head in named if head not in self.remove]
        if kept:
            raise PlanError(
                f"the plan doesn't remove {', '.join(kept)}", where="plan", hint="see plan.remove"
            )
        return self._edited({*self.remove} - {*named}, named, "kept: by hand")

    def with_removed(self, *heads: str | HeadId) -> "PruningPlan":
        """Return the plan that removes these heads, too.

        Raises:
            PlanError: One is removed already or protected, or what the plan would leave can't run or breaks its constraints.
        """
        named = select_heads(heads, self._heads())
        protected = {*self.constraints.get("protect", ())}
        for head in named:
            if head in self.remove or protected & {str(head), str(head.site)}:
                fate = "removed already" if head in self.remove else "protected"
                raise PlanError(
                    f"{head} is {fate}", where="plan", hint="choose another head, or plan again"
                )
        return self._edited({*self.remove, *named}, named, "removed: by hand")

    def _heads(self) -> tuple[HeadId, ...]:
        """All heads, before anything is removed."""
        if not self.sites:
            raise PlanError(
                "the plan doesn't say which heads its model has",
                where="plan",
                hint="make it again with hp.plan or headprune prune --dry-run --json",
            )
        return tuple(
            HeadId(SiteId.parse(name), head)
            for name, site in self.sites.items()
            for head in site.heads
        )

    def _edited(
        self, removed: set[HeadId], changed: Sequence[HeadId], reason: str
    ) -> "PruningPlan":
        kept = {
            name: [h for h in site.heads if HeadId(SiteId.parse(name), h) not in removed]
            for name, site in self.sites.items()
        }
        for name in dict.fromkeys(str(head.site) for head in changed):
            problem = self._unlawful(self.sites[name], kept[name])
            if problem:
                raise PlanError(
                    f"{name} would keep {len(kept[name])} of {len(self.sites[name].heads)} heads, and {problem}",
                    where="plan",
                    hint="change other heads of that layer with it, or make a plan with other constraints",
                )
        counts = {name: len(heads) for name, heads in kept.items()}
        if self.constraints.get("uniform") and len(set(counts.values())) > 1:
            raise PlanError(
                "the layers would keep different numbers of heads, and the plan is uniform",
                where="plan",
                hint="change as many heads of every layer, or make a plan without `uniform`",
            )
        after = {"after", "share", "saves"}  # of the plan as it was
        budget = {name: value for name, value in self.budget.items() if name not in after}
        return self.model_copy(
            update={
                "remove": tuple(head for head in self._heads() if head in removed),
                "kept_per_site": counts,
                "budget": {**budget, "heads_after": sum(counts.values())},
                "reasons": {**self.reasons, **dict.fromkeys(map(str, changed), reason)},
                "roles": self.roles and self.roles.given(removed),
            }
        )

    def _unlawful(self, site: PlannedSite, kept: Sequence[int]) -> str | None:
        """Return what speaks against keeping ``kept``; None where nothing does."""
        if len(kept) < site.min_heads:
            return f"at least {site.min_heads} must be kept"
        groups = Counter(head // site.group_size for head in kept)
        if site.is_even and len(set(groups.values())) > 1:
            return f"groups of {site.group_size} that share keys and values would be uneven"
        counts_groups = site.group_size > 1 and self.constraints.get("gqa") != "even"
        number, multiple = (
            len(groups if counts_groups else kept),
            self.constraints.get("multiple_of", 1),
        )
        if number % multiple and not self.is_padded:
            return f"{'groups' if counts_groups else 'heads'} are kept in multiples of {multiple}"
        return None

    def __repr__(self) -> str:
        """In a line: the document is ``to_json()``."""
        total = len(self.remove) + sum(self.kept_per_site.values())
        return f"<PruningPlan: {len(self.remove)} of {total} heads removed>"

    def __str__(self) -> str:
        """How many heads are removed, how many each layer keeps, and which are removed."""
        total = len(self.remove) + sum(self.kept_per_site.values())
        asked = ", ".join(
            f"{name}={self.budget[name]}"
            for name in ("keep", "heads", "target", "asked")
            if name in self.budget
        )
        lines = [f"removes {len(self.remove)} of {total} heads" + (f" ({asked})" if asked else "")]
        counts = Counter(self.kept_per_site.values())
        if len(self.kept_per_site) <= _SHOWN * 3:
            lines.append("kept: " + ", ".join(f"{n} in {s}" for s, n in self.kept_per_site.items()))
        else:
            lines.append("kept: " + ", ".join(f"{n} in {counts[n]} layers" for n in sorted(counts)))
        names = [str(head) for head in self.remove[: _SHOWN * 3]]
        more = len(self.remove) - len(names)
        lines.append(
            "removed: " + (", ".join(names) or "none") + (f" and {more} more" if more else "")
        )
        if "saves" in self.budget:
            saved, whole = (self.budget[name]["parameters"] for name in ("saves", "whole"))
            lines.append(f"saves {saved:,} of {whole:,} parameters")
        lines += [self.roles.sentence] if self.roles else []
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        known = self._heads() if self.sites else self.remove
        removed = {*self.remove}
        cells = {
            head: (COLOURS[0], "removed") if head in removed else (COLOURS[-1], "kept")
            for head in known
        }
        return head_map(str(self).splitlines()[0] + "; dark: removed", cells)
