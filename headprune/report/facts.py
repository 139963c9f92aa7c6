"""What is known of every head, put together from scores, a plan and roles."""

from collections.abc import Iterator
from dataclasses import dataclass

from headprune.analysis.roles import Roles
from headprune.artefact import Z_95, Artefact
from headprune.heads import HeadId, SiteId
from headprune.plans import HeadScores, PruningPlan
from headprune.report.documents import Documents, is_of_same_model


@dataclass(frozen=True)
class HeadFacts:
    """One head.

    Args:
        head: Which.
        importance: Its score; None where there are no scores.
        ends: The 95 % interval of the score, where it was sampled.
        rank: Its place in the order, 1 the least important.
        roles: Its roles, each with its number: ``{"sink": "0.43 (> 0.3)"}``.
        is_removed: Whether the plan removes it; None where there is no plan.
        reason: Why it is removed or kept, where that isn't its score alone.
    """

    head: HeadId
    importance: float | None = None
    ends: tuple[float, float] | None = None
    rank: int | None = None
    roles: dict[str, str] | None = None
    is_removed: bool | None = None
    reason: str = ""

    @property
    def fate(self) -> str:
        """What becomes of it, in a word or a sentence."""
        if self.is_removed is None:
            return ""
        return self.reason or ("removed" if self.is_removed else "kept")

    @property
    def interval(self) -> str:
        """The interval of its score."""
        return "" if self.ends is None else f"[{self.ends[0]:.3g}, {self.ends[1]:.3g}]"

    @property
    def line(self) -> str:
        """Which it is, its rank and its fate, in a line."""
        rank = "" if self.rank is None else f"rank {self.rank}"
        return ", ".join(filter(None, (str(self.head), rank, self.fate)))

    def text(self, *, count: int) -> str:
        """Return all of it, a line for each fact; ``count`` is the number of heads."""
        lines = [str(self.head)]
        if self.importance is not None:
            lines.append(f"importance {self.importance:.3g} {self.interval}".rstrip())
            lines.append(f"rank {self.rank} of {count} (1 is least important)")
        lines += [f"{role} {value}".rstrip() for role, value in (self.roles or {}).items()]
        if self.roles == {}:
            lines.append("no role")
        return "\n".join([*lines, self.fate] if self.fate else lines)


@dataclass(frozen=True)
class Subject:
    """The heads of one model, with the documents that tell of them.

    Args:
        scores: How important they are, or None.
        plan: Which are removed, or None.
        roles: What they do, or None.
    """

    scores: HeadScores | None
    plan: PruningPlan | None
    roles: Roles | None

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """All heads that a document names, in the model's order, which scores and roles keep."""
        named = [
            *(self.scores.heads if self.scores else ()),
            *(self.roles.heads if self.roles else ()),
        ]
        if self.plan is not None:
            sites = self.plan.sites.items()
            planned = [
                HeadId(SiteId.parse(name), head) for name, one in sites for head in one.heads
            ]
            named += sorted([*planned, *self.plan.remove])
        return tuple(dict.fromkeys(named))

    @property
    def has_roles(self) -> bool:
        """Whether it is known what the heads do: by roles, or by what a plan notes of them."""
        return self.roles is not None or (self.plan is not None and self.plan.roles is not None)

    def _roles_of_heads(self) -> dict[HeadId, dict[str, str]]:
        if self.roles is not None:
            return _roles_of_heads(self.roles)
        if self.plan is None or self.plan.roles is None:
            return {}
        found: dict[HeadId, dict[str, str]] = {head: {} for head in self.heads}
        for role, fate in self.plan.roles.by_role.items():
            for head in (*fate.removed, *fate.kept):
                found.setdefault(head, {})[role] = ""
        return found

    def facts(self) -> tuple[HeadFacts, ...]:
        """Return what is known of each head, in the model's order."""
        values = self.scores.by_head() if self.scores else {}
        ranks = (
            {head: place for place, head in enumerate(self.scores.ranked(), 1)}
            if self.scores
            else {}
        )
        errors = self.scores.standard_errors if self.scores else None
        error_of = dict(zip(values, errors, strict=True)) if errors else {}
        removed = {*self.plan.remove} if self.plan else set()
        reasons = self.plan.reasons if self.plan else {}
        roles = self._roles_of_heads()

        def ends(head: HeadId) -> tuple[float, float] | None:
            half = Z_95 * error_of.get(head, 0.0)
            return (values[head] - half, values[head] + half) if head in error_of else None

        return tuple(
            HeadFacts(
                head,
                importance=values.get(head),
                ends=ends(head),
                rank=ranks.get(head),
                roles=roles.get(head),
                is_removed=head in removed if self.plan else None,
                reason=reasons.get(str(head), ""),
            )
            for head in self.heads
        )


def subjects(documents: Documents) -> Iterator[Subject]:
    """Yield the heads of every plan, then those of models that nothing was planned for."""
    covered: list[Artefact] = []
    for plan in documents.of(PruningPlan):
        covered.append(plan)
        yield Subject(documents.beside(plan, HeadScores), plan, documents.beside(plan, Roles))
    for one in (*documents.of(HeadScores), *documents.of(Roles)):
        if not any(is_of_same_model(one, other) for other in covered):
            covered.append(one)
            yield Subject(documents.beside(one, HeadScores), None, documents.beside(one, Roles))


def _roles_of_heads(roles: Roles) -> dict[HeadId, dict[str, str]]:
    """Return the roles of each head, each with its number and rule: of a role with several numbers, its largest."""
    found: dict[HeadId, dict[str, tuple[float, str]]] = {head: {} for head in roles.heads}
    for measure in roles.measures:
        rule = roles.thresholds.get(measure.role, "")
        column = f"{measure.column} " if measure.column else ""
        for head, value, passes in zip(roles.heads, measure.values, measure.passes, strict=True):
            if passes and value is not None:
                text = f"{column}{value:.3g} ({rule})" if rule else f"{column}{value:.3g}"
                known = found[head].get(measure.role, (value, text))
                found[head][measure.role] = max(known, (value, text))
    return {head: {role: text for role, (_, text) in each.items()} for head, each in found.items()}
