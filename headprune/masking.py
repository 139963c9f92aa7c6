"""Silence heads by one multiplication: the output projection's input is the concatenation of the heads' outputs ``z``.

(Where a norm over all heads stands before the output projection, ``z`` is the norm's input.)

Any attention kernel, no ``output_attentions``, no change of the model's forward; and since every row of a batch may carry
its own mask, one forward evaluates as many masks as it has rows.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy, Site
from headprune.anatomy.trace import LinearInputs
from headprune.batch import Batch
from headprune.errors import ModelError, PlanError, did_you_mean
from headprune.heads import SiteId, select_heads
from headprune.placement import staged


@contextmanager
def gated(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    gates: Float[Tensor, "rows heads"] | Float[Tensor, " heads"],
) -> Iterator[None]:
    """Multiply every head's ``z`` by its gate while the block lasts.

    Exact: a gate of 0 removes the head's term from the sum that the output projection computes (its bias stays), and a gate
    of 1 changes no bit. Gates may require grad: the gradient of a loss with respect to them is Michel's.

    Args:
        model: The model whose forwards are gated.
        anatomy: Its anatomy; columns of ``gates`` are ``anatomy.heads``.
        gates: One row for every row of the batch, or a single row for all; on any device.

    Raises:
        ModelError: An attention ran and its output projection was not called, so that nothing was masked there; or the batch
            has a number of rows that the gates don't fit.
    """
    # Sent to a device once: with a copy at every attention the host would wait there, every time.
    gates_on: dict[torch.device, Tensor] = {}
    slots_on: dict[tuple[SiteId, int, torch.device], Tensor] = {}

    def multiply(site: Site, z: Tensor) -> Tensor:
        if z.device not in gates_on:
            gates_on[z.device] = staged(gates, z.device)
        by_row = gates_on[z.device][..., anatomy.columns[site.id]]
        if (slots := places_of(site, z.shape[-2])) is not None:
            key = (site.id, z.shape[-2], z.device)
            if key not in slots_on:
                slots_on[key] = staged(torch.tensor(slots), z.device)
            # Dead ones among the slots of ``z`` are let through.
            open_gates = by_row.new_ones(*by_row.shape[:-1], z.shape[-2])
            by_row = open_gates.index_copy(-1, slots_on[key], by_row)
        by_row = by_row.to(z.dtype)
        if gates.dim() == 2:
            by_row = _by_row(site, by_row, z)
        return z * by_row.unsqueeze(-1)

    with changed(model, anatomy, multiply):
        yield


def gates_by_site(
    anatomy: Anatomy, parts: Mapping[str, Any], *, device: torch.device
) -> Float[Tensor, "rows heads"] | Float[Tensor, " heads"]:
    """Put gates of sites, and lists of heads to silence, together in the columns of ``anatomy.heads``.

    ``parts`` holds, by site, gates [heads] or [rows, heads], or the indices of the heads to silence.

    Raises:
        PlanError: A site or head isn't there, or gates have another shape.
    """
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    removed = select_heads({name: parts[name] for name in {*parts} - {*tensors}}, anatomy.heads)
    columns = {str(site): where for site, where in anatomy.columns.items()}
    rows = next((part.shape[:1] for part in tensors.values() if part.dim() == 2), ())
    mask = staged(anatomy.mask(removed), device)
    found = {name: mask[where].expand(*rows, -1) for name, where in columns.items()}
    for name, tensor in tensors.items():
        if name not in columns:
            raise PlanError(
                f"the model has no attention {name!r}",
                where="masked",
                hint=did_you_mean(name, columns),
            )
        checked = checked_gates(tensor, found[name].shape[-1], rows=rows, name=name)
        found[name] = staged(checked, device).to(mask.dtype).expand(*rows, -1)
    return torch.cat(list(found.values()), dim=-1)


def checked_gates(gates: Tensor, heads: int, *, rows: Sequence[int] | None, name: str) -> Tensor:
    """Return gates as they are.

    Raises:
        PlanError: They aren't [heads], nor [rows, heads] with as many rows as other sites have.
    """
    fits = rows is None or gates.dim() == 1 or gates.shape[:1] == tuple(rows)
    if fits and gates.dim() in (1, 2) and gates.shape[-1] == heads:
        return gates
    expected = f"[{heads}] or [{rows[0] if rows else 'rows'}, {heads}]"
    raise PlanError(
        f"the gates of {name} have shape {list(gates.shape)}, expected {expected}",
        where="masked",
        hint="give [heads] or [rows, heads], the same number of rows for every site",
    )


@contextmanager
def observed(
    model: PreTrainedModel, anatomy: Anatomy
) -> Iterator[dict[SiteId, list[Float[Tensor, "... heads head_dim"]]]]:
    """Collect every head's ``z`` while the block lasts, site by site, call by call, in the graph if grad is on.

    Raises:
        ModelError: See :func:`gated`.
    """
    seen: dict[SiteId, list[Tensor]] = {site.id: [] for site in anatomy.sites}

    def keep(site: Site, z: Tensor) -> Tensor:
        places = places_of(site, z.shape[-2])
        seen[site.id].append(z if places is None else z[..., places, :])
        return z

    with changed(model, anatomy, keep):
        yield seen


@contextmanager
def changed(
    model: PreTrainedModel, anatomy: Anatomy, change: Callable[[Site, Tensor], Tensor]
) -> Iterator[None]:
    """Replace ``z`` [..., places, head_dim] by ``change(site, z)`` while the block lasts."""
    fired: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    by_function: dict[nn.Module, Any] = {}
    with ExitStack() as hooks:

        def add(handle: Any) -> None:
            hooks.callback(handle.remove)

        add(model.register_forward_pre_hook(lambda _module, _args: ran.update([""])))
        for site in anatomy.sites:
            gate = model.get_submodule(site.gate)
            hook = _hook(site, change, fired)
            if site.called == "module":
                add(gate.register_forward_pre_hook(hook))
            else:
                by_function[gate] = hook
            attention = model.get_submodule(site.path)
            add(attention.register_forward_pre_hook(lambda *_, name=site.path: ran.update([name])))
        if by_function:
            hooks.enter_context(LinearInputs(_calls(by_function)))
        yield
    silent = [site for site in anatomy.sites if ran[site.path] and not fired[site.gate]]
    if ran[""] and anatomy.sites and not fired:
        silent = list(anatomy.sites)
    if silent:
        raise ModelError(
            f"the heads of {silent[0].output} were not reached: its forward was never called as a module",
            where=f"{type(model).__name__} ({anatomy.model_type})",
            hint="a fused kernel may have replaced the attention; load the model with attn_implementation='sdpa'",
        )


def _calls(hooks: Mapping[nn.Module, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what changes ``z`` where the weight of one of the layers is passed to a function."""

    def change(z: Tensor, weight: Tensor) -> Tensor:
        # The layers are asked each time: a cut weight is there in full size for the length of a call only.
        for layer, hook in hooks.items():
            if layer.weight is weight:
                changed_z: Tensor = hook(layer, (z,))[0]
                return changed_z
        return z

    return change


def _hook(site: Site, change: Callable[[Site, Tensor], Tensor], fired: Counter[str]) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        fired[site.gate] += 1
        z, *rest = args
        width = z.shape[-1] // site.head_dim
        if not width or not site.heads:
            return args
        heads = z.unflatten(-1, (width, site.head_dim))
        return (change(site, heads).flatten(-2), *rest)

    return hook


def places_of(site: Site, width: int) -> list[int] | None:
    """Return which of the ``width`` places of ``z`` are heads (None: all); outputs of the others, dead ones, go nowhere."""
    if width == len(site.heads):
        return None
    present = site.slots if width == len(site.slots) else tuple(range(site.num_heads))
    return [present.index(head) for head in site.heads]


def _by_row(site: Site, gates: Tensor, z: Tensor) -> Tensor:
    """Return gates shaped like ``z`` but for head_dim: each row of the batch may have become several rows (windows, tokens)."""
    length = z.shape[0] if site.rows == "batch-major" else z.shape[:-2].numel()
    if length % gates.shape[0]:
        raise ModelError(
            f"{site.gate} got {length} rows, and there are gates for {gates.shape[0]}",
            where="masking",
            hint="give one row of gates for every row of the batch",
        )
    if site.rows == "time-major":
        return gates.repeat(length // gates.shape[0], 1).reshape(*z.shape[:-2], gates.shape[-1])
    rows = gates.repeat_interleave(length // gates.shape[0], dim=0)
    return rows.reshape(z.shape[0], *[1] * (z.dim() - 3), gates.shape[-1])


def real_positions(site: Site, shape: Sequence[int], batch: Batch) -> Tensor | None:
    """Return which positions of what a site reads, which begins with ``shape``, aren't padding; None where all count.

    Where rows were rearranged (windows, patches), all do.
    """
    mask = padding_mask(site, batch)
    if mask is None:
        return None
    mask = mask.T if site.rows == "time-major" else mask
    if tuple(shape) == (mask.numel(),):
        return mask.flatten()
    return mask if tuple(shape) == tuple(mask.shape) else None


def row_of_position(
    site: Site, shape: Sequence[int], batch: Batch
) -> Int[Tensor, " positions"] | None:
    """Return the row of the batch of every position, flattened, of what a site reads, which begins with ``shape``.

    Where the model has split rows, into windows say, the parts of a row follow each other. None where rows can't be told apart:
    images of different sizes in one row.
    """
    rows, positions = batch.num_rows, prod(shape)
    if (positions if site.rows == "time-major" else shape[0]) % rows:
        return None
    place = torch.arange(positions, device=batch.example_of_row.device)
    return place % rows if site.rows == "time-major" else place * rows // positions


def padding_mask(site: Site, batch: Batch) -> Tensor | None:
    """Return which positions of the rows that a site's stack reads aren't padding [rows, length], if that is told."""
    name = "decoder_attention_mask" if site.id.stack == "decoder" else "attention_mask"
    mask = batch.inputs.get(name)
    return mask.bool() if mask is not None and mask.dim() == 2 else None
