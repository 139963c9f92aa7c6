"""What an anatomy is made of: sites, and which rows of which parameter belong to which head. Plain frozen values."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor

from headprune.heads import COLOURS, HeadId, HeadSelection, SiteId, head_map, select_heads


@dataclass(frozen=True, slots=True)
class Run:
    """``length`` neighbouring indices of a dimension that belong to the same heads; no owners: to all of them."""

    owners: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True)
class Slice:
    """One dimension of one parameter, cut into runs, in the order and size of the *unpruned* model.

    Args:
        parameter: The parameter's path from the model's root.
        dim: The dimension that is cut.
        runs: Who owns what along it. An index goes when it has owners and all of them are gone; this one rule covers
            per-head rows, rows that a GQA group shares, and fused projections.
        side: Which side of a linear layer the dimension is; None for a parameter of anything else.
    """

    parameter: str
    dim: int
    runs: tuple[Run, ...]
    side: Literal["input", "output"] | None = None

    def size(self, heads: Collection[int]) -> int:
        """Return the length of the dimension while ``heads`` are there."""
        return sum(run.length for run in self.runs if _is_there(run, heads))

    def kept_indices(self, *, present: Collection[int], kept: Collection[int]) -> list[int]:
        """Return which of the indices that exist while ``present`` are there stay when only ``kept`` remain.

        >>> Slice("q.weight", 0, (Run((0,), 2), Run((1,), 2), Run((2,), 2))).kept_indices(
        ...     present=[0, 2], kept=[2]
        ... )
        [2, 3]
        """
        indices: list[int] = []
        position = 0
        for run in self.runs:
            if not _is_there(run, present):
                continue
            if _is_there(run, kept):
                indices.extend(range(position, position + run.length))
            position += run.length
        return indices


def _is_there(run: Run, heads: Collection[int]) -> bool:
    return not run.owners or any(owner in heads for owner in run.owners)


@dataclass(frozen=True, slots=True)
class Attribute:
    """An integer of a module that depends on the number of heads; ``kind`` says how.

    A name such as ``config.num_attention_heads`` is read by the module from its config; that module then gets a view of
    the config in which the number differs.
    """

    module: str
    name: str
    kind: str


Execution = Literal["native", "zero_padded", "full_size_weights"]
"""How an attention runs once heads are cut.

``native``: its own forward, with fewer heads. ``zero_padded``: its projections are cut, and their outputs are spread back to
the width of all heads, zeros where a head is gone; the output projection reads what is left. Exact for any attention whose
projections are linear layers, whatever its forward assumes about its width, its biases or its norms. ``full_size_weights``:
while it runs, it sees its weights in the size of all heads, zeros where a head is gone; in memory and on disk they are cut. For
attentions that pass their weights to a function; exact for any whose own weights alone are cut, and no faster.
"""

Call = Literal["module", "function"]
"""How a layer is called: as a module, or by passing its weight to a function."""

RowOrder = Literal["batch-major", "time-major"]
"""How the rows of the batch lie in ``z``: all positions of one row together, or all rows of one position."""


@dataclass(frozen=True, slots=True)
class Site:
    """One attention of the model.

    Args:
        id: Its name.
        path: Path of the attention module from the model's root.
        output: Path of the output projection.
        gate: Path of the module whose input is the concatenation of the heads' outputs ``z``: the output projection, or a
            norm before it that mixes heads.
        num_heads: Number of query heads of the unpruned model.
        num_key_value_heads: Number of key/value heads of the unpruned model.
        head_dim: Width of one head's ``z``.
        heads: Original indices of the heads that are still there.
        slices: The dimensions to cut, the output projection's among them.
        attributes: The integers to update.
        execution: How it runs with fewer heads.
        when_empty: How it runs without any (None: it can't).
        padding: Heads that are silenced for good and still take room, so that groups stay even.
        called: How ``gate`` is called.
        rows: How the rows of the batch lie in ``z``.
    """

    id: SiteId
    path: str
    output: str
    gate: str
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    heads: tuple[int, ...]
    slices: tuple[Slice, ...]
    attributes: tuple[Attribute, ...]
    execution: Execution = "native"
    when_empty: Execution | None = None
    padding: tuple[int, ...] = ()
    called: Call = "module"
    rows: RowOrder = "batch-major"

    @property
    def min_heads(self) -> int:
        """How many heads must stay (0 or 1; proven by trying)."""
        return 1 if self.when_empty is None else 0

    @property
    def home(self) -> str:
        """Path of the innermost module that holds the attention and every parameter that is cut for it."""
        paths = [self.path, *(item.parameter.rpartition(".")[0] for item in self.slices)]
        shared = takewhile(
            lambda parts: len(set(parts)) == 1,
            zip(*(path.split(".") for path in paths), strict=False),
        )
        return ".".join(parts[0] for parts in shared)

    @property
    def slots(self) -> tuple[int, ...]:
        """Heads that take room in the weights, in the order in which they lie there."""
        return tuple(sorted({*self.heads, *self.padding}))

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head in the unpruned model (1: multi-head attention)."""
        return self.num_heads // self.num_key_value_heads

    def groups(self, heads: Iterable[int]) -> dict[int, tuple[int, ...]]:
        """Return ``heads`` by the key/value head they read."""
        found: dict[int, list[int]] = {}
        for head in sorted(heads):
            found.setdefault(head // self.group_size, []).append(head)
        return {group: tuple(members) for group, members in found.items()}

    def is_lawful(self, kept: Collection[int]) -> bool:
        """Whether the attention can run with ``kept``: every key/value head left serves equally many query heads."""
        sizes = {len(members) for members in self.groups(kept).values()}
        even = len(sizes) <= 1 or self.execution != "native"
        return even and len(kept) >= self.min_heads

    def padded(self, kept: Collection[int]) -> tuple[int, ...]:
        """Return ``kept`` and the heads that must stay as dead weight so that all groups have the size of the largest.

        A group without any head left goes as a whole. Heads are only ever taken from those that still have their slot.
        """
        if self.execution != "native":
            return tuple(sorted(kept))
        groups = self.groups(kept)
        room = self.groups(self.slots)
        size = max((len(members) for members in groups.values()), default=0)
        filled: list[int] = []
        for group, members in groups.items():
            spare = [head for head in room[group] if head not in members]
            filled += [*members, *spare[: size - len(members)]]
        return tuple(sorted(filled))

    def after(self, kept: Collection[int], *, pad: bool = False) -> "Site":
        """Return the site as it is when only ``kept`` remain of its heads."""
        if tuple(kept) == self.heads:
            return self
        heads = tuple(sorted(kept))
        slots = self.padded(heads) if pad else heads
        return replace(self, heads=heads, padding=tuple(h for h in slots if h not in heads))

    def cut_slices(self) -> tuple[Slice, ...]:
        """Return the dimensions that were cut to get here: with zero-padded execution only those of linear layers."""
        if self.execution_with(self.heads) != "zero_padded":
            return self.slices
        return tuple(item for item in self.slices if item.side is not None)

    def execution_with(self, kept: Collection[int]) -> Execution:
        """Return how the attention runs when ``kept`` remain."""
        return self.execution if kept or self.when_empty is None else self.when_empty

    def attribute_value(self, kind: str, slots: Collection[int]) -> int:
        """Return what an attribute of ``kind`` is when ``slots`` remain."""
        heads = len(slots)
        key_value_heads = len(self.groups(slots)) if self.num_key_value_heads > 1 else 1
        match kind:
            case "heads":
                return heads
            case "key_value_heads":
                return key_value_heads
            case "group_size":
                return max(1, heads // max(1, key_value_heads))
            case "width":
                return heads * self.head_dim
            case _:
                return key_value_heads * self.head_dim


# Shapes that a short text names.
_SHOWN = 4


@dataclass(frozen=True, repr=False)
class Anatomy:
    """Where the heads of a model are.

    Args:
        model_type: As in the model's config.
        sites: The attentions whose heads can be pruned.
        refused: Path of each attention that can't be, with the reason.
    """

    model_type: str
    sites: tuple[Site, ...]
    refused: Mapping[str, str]

    @cached_property
    def heads(self) -> tuple[HeadId, ...]:
        """All heads that are still there, in the model's order. Columns of every mask follow this order."""
        return tuple(HeadId(site.id, head) for site in self.sites for head in site.heads)

    @cached_property
    def columns(self) -> dict[SiteId, slice]:
        """Which of the columns of a mask over :attr:`heads` belong to each site."""
        found: dict[SiteId, slice] = {}
        start = 0
        for site in self.sites:
            found[site.id] = slice(start, start + len(site.heads))
            start += len(site.heads)
        return found

    def mask(self, removed: HeadSelection) -> Tensor:
        """Return a head mask [heads] without heads in any form: 1 keeps a head, 0 silences it, in the order of :attr:`heads`.

        Raises:
            PlanError: A head is named that the model doesn't have.
        """
        silent = set(select_heads(removed, self.heads))
        return torch.tensor([float(head not in silent) for head in self.heads])

    def kept_per_site(self, removed: Collection[HeadId]) -> dict[SiteId, tuple[int, ...]]:
        """Return the heads of each site that remain when ``removed`` go."""
        gone = set(removed)
        return {
            site.id: tuple(head for head in site.heads if HeadId(site.id, head) not in gone)
            for site in self.sites
        }

    def __repr__(self) -> str:
        """In a line."""
        return f"<Anatomy {self.model_type}: {len(self.heads)} heads, {len(self.refused)} refused>"

    def __str__(self) -> str:
        """How many heads which attentions have, and what can't be pruned."""
        lines = [f"{self.model_type}: {len(self.heads)} heads in {len(self.sites)} attentions"]
        alike: dict[tuple[object, ...], list[Site]] = {}
        for site in self.sites:
            shape = (site.id.stack, site.id.kind, len(site.heads), site.head_dim)
            alike.setdefault((*shape, len(site.groups(site.slots))), []).append(site)
        for (_, _, heads, width, groups), sites in list(alike.items())[:_SHOWN]:
            name = str(sites[0].id) + (f" to {sites[-1].id}" if len(sites) > 1 else "")
            shared = f", {groups} key/value heads" if sites[0].group_size > 1 else ""
            lines.append(f"{name}: {heads} heads of {width}{shared}")
        if len(alike) > _SHOWN:
            lines.append(f"and {len(alike) - _SHOWN} other shapes")
        if self.refused:
            path, reason = next(iter(self.refused.items()))
            lines.append(f"{len(self.refused)} can't be pruned, such as {path}: {reason}")
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        cells = {head: (COLOURS[-1], "") for head in self.heads}
        return head_map(str(self).splitlines()[0], cells)
