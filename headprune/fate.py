"""What becomes of heads that have a role: which are removed, which are kept, and the sentence that says so. Knows no model."""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict

from headprune.analysis.catalogue import ROLES, Role
from headprune.heads import HeadId, HeadName

_RARE = 0.1
"""A role is told as "k of the m" where no larger share of the heads has it, else as a count."""


class RoleFate(BaseModel):
    """The heads of one role that a plan removes, and those that it keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    removed: tuple[HeadName, ...]
    kept: tuple[HeadName, ...]


class RoleFates(BaseModel):
    """What becomes of the heads of every role.

    Args:
        removed: How many heads are removed, with a role or without.
        total: How many heads there were.
        by_role: The heads of each role.
        data: What the roles were measured on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    removed: int
    total: int
    by_role: dict[str, RoleFate]
    data: dict[str, Any] = {}

    def given(self, removed: Collection[HeadId]) -> "RoleFates":
        """Return the same roles where other heads are removed."""
        fates = {}
        for name, fate in self.by_role.items():
            heads = sorted((*fate.removed, *fate.kept))
            fates[name] = RoleFate(
                removed=tuple(head for head in heads if head in removed),
                kept=tuple(head for head in heads if head not in removed),
            )
        return self.model_copy(update={"by_role": fates, "removed": len(removed)})

    @property
    def sentence(self) -> str:
        """How many of the removed heads have which role, in words; roles that no head has are left out."""
        if not self.removed:
            return ""
        known = [
            (role, fate)
            for name, role in ROLES.items()
            if role.sign and (fate := self.by_role.get(name)) and fate.removed + fate.kept
        ]
        rare = [pair for pair in known if len(pair[1].removed + pair[1].kept) <= _RARE * self.total]
        counts = ", ".join(
            [_count(*pair) for pair in known if pair not in rare]
            + [_count_of_all(*pair) for pair in rare]
        )
        if not counts:
            return "no head has one of the roles that were measured"
        heads = "head that is" if self.removed == 1 else "heads that are"
        return f"of the {self.removed} {heads} removed: {counts}"

    @property
    def statement(self) -> str:
        """The sentence as it stands in a text, with what the roles were measured on; empty where nothing is removed."""
        words, basis = self.sentence, f" ({self.basis})" if self.basis else ""
        return f"{words[:1].upper()}{words[1:]}{basis}." if words else ""

    @property
    def basis(self) -> str:
        """What the roles were measured on, in words; empty where that was made up."""
        if "n" not in self.data:
            return ""
        return f"roles were measured on {self.data['n']:,} rows of {self.data.get('name')}"


def _count(role: Role, fate: RoleFate) -> str:
    """Return how many heads of a role are removed, such as ``9 are sinks`` or ``1 looks at the previous token``."""
    count, noun, does = len(fate.removed), role.noun, role.phrase[1]
    if count == 1 and not does:
        return f"1 is {'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    verb, _, rest = (does or f"are {noun}s").partition(" ")
    return f"{count} {verb}{'s' if count == 1 else ''} {rest}"


def _count_of_all(role: Role, fate: RoleFate) -> str:
    """Return the same of a rare role: ``1 of the 5 induction heads``, ``not the one induction head``."""
    total = len(fate.removed + fate.kept)
    if total == 1:
        return f"{'' if fate.removed else 'not '}the one {role.noun}"
    return f"{len(fate.removed)} of the {total} {role.noun}s"
