"""Which attentions and heads the user's names speak of."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from headprune.anatomy import Anatomy
from headprune.errors import PlanError
from headprune.heads import HeadId, SiteId, select_heads


def selected_sites(anatomy: Anatomy, names: Sequence[str]) -> Anatomy:
    """Return the anatomy of the attentions that ``names`` speak of (all, where there are none).

    Raises:
        PlanError: A name fits none.
    """
    if not names:
        return anatomy
    fitting: set[SiteId] = set()
    for name in names:
        found = {site.id for site in anatomy.sites if name in _descriptions(site.id)}
        if not found:
            known = sorted({word for site in anatomy.sites for word in _descriptions(site.id)[1:]})
            raise PlanError(
                f"the model has no attention {name!r}",
                where="--sites",
                hint=f"choose from {', '.join(known)}, or name one, such as {anatomy.sites[0].id}",
            )
        fitting |= found
    return replace(anatomy, sites=tuple(site for site in anatomy.sites if site.id in fitting))


def _descriptions(site: SiteId) -> tuple[str, ...]:
    """Return how ``--sites`` may speak of an attention: its name, its kind, its stack, both."""
    stack = (site.stack, f"{site.stack}.{site.kind}") if site.stack else ()
    return (str(site), site.kind, *stack)


def protected_heads(anatomy: Anatomy, names: Iterable[str]) -> set[HeadId]:
    """Return the heads that ``names`` of heads and layers speak of.

    Raises:
        PlanError: There is none of a name.
    """
    protected: set[HeadId] = set()
    sites = {str(site.id): site for site in anatomy.sites}
    for name in names:
        if name not in sites and re.fullmatch(r"(\w+\.)?L\d+(\.[a-z]+)?", name):
            raise PlanError(
                f"the model has no layer {name}",
                where="--protect",
                hint=f"it has {', '.join(sites)}",
            )
        if name in sites:
            protected |= {HeadId(sites[name].id, head) for head in sites[name].heads}
        else:
            protected |= set(select_heads([name], anatomy.heads))
    return protected
