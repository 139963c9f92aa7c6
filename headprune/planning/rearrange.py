"""Which heads of an attention go together: those that lose the least as a set, not one by one.

By second order, what a set ``Z`` of heads adds to the loss is half of ``sum_{i, j in Z} F_ij``, and scores see no more than the
diagonal. From the ``k`` cheapest heads on, every other one is let in, and the one whose leaving makes the sum smallest leaves.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, section 4.2 (mask rearrangement).
"""

from collections.abc import Collection, Mapping, Sequence

from headprune.anatomy import Anatomy
from headprune.heads import HeadId

Products = Mapping[str, Sequence[Sequence[float]]]
"""``F`` of every attention, by its name: rows and columns are its heads."""


def rearranged(
    gone: Collection[HeadId], anatomy: Anatomy, products: Products, *, protected: Collection[HeadId]
) -> frozenset[HeadId]:
    """Return as many heads of every attention as are in ``gone``, those that lose the least together.

    Attentions whose heads share keys and values are left as they are.

    Args:
        gone: What sorting chose.
        anatomy: Where the heads are.
        products: The Fisher information of every attention's gates.
        protected: Heads that stay.
    """
    found: set[HeadId] = set()
    for site in anatomy.sites:
        own = [HeadId(site.id, head) for head in site.heads]
        going = [place for place, head in enumerate(own) if head in gone]
        if site.group_size == 1 and going:
            free = [place for place, head in enumerate(own) if head not in protected]
            going = _least_together(products[str(site.id)], free, len(going))
        found.update(own[place] for place in going)
    return frozenset(found)


def _least_together(
    fisher: Sequence[Sequence[float]], free: Sequence[int], count: int
) -> list[int]:
    order = sorted(free, key=lambda place: (fisher[place][place], place))
    members = order[:count]
    for candidate in order[count:]:
        members.append(candidate)
        # What is left without i is the sum less i's row and column, F_ii being in both.
        saved = [2 * sum(fisher[i][j] for j in members) - fisher[i][i] for i in members]
        members.pop(saved.index(max(saved)))
    return members
