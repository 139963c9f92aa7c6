"""Detectors that read weights alone: what a head would write if it looked at a token.

A head's output is ``O_h V_h x`` of what it looks at. Both maps are asked of the model: an attention that reads one position
looks there, so ``z`` of unit vectors is ``V_h``, whatever projections, groups or layouts it has; ``O_h`` is the output projection
of unit vectors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headprune.analysis.request import RoleRequest
from headprune.analysis.roles import Measure
from headprune.anatomy.sites import Site
from headprune.artefact import Z_95
from headprune.batch import forward
from headprune.errors import UnsupportedError
from headprune.masking import observed
from headprune.placement import input_device, value_of

_TOKENS = 100
_TOP, _BOTTOM = 5, 10
_LINEAR = 1e-3
"""How far, in shares of its size, ``z`` of a random vector may be from the map found by unit vectors, in single precision."""
_ROUNDINGS = 8
"""Or so many roundings of a coarser type."""
_CHUNK = 8192
"""Rows of an embedding that are read at a time."""


@dataclass(frozen=True, eq=False)
class OvMaps:
    """What the heads of one attention read and write.

    Args:
        site: The attention.
        value: ``V_h``.
        output: ``O_h``.
    """

    site: Site
    value: Float[Tensor, "heads head_dim hidden"]
    output: Float[Tensor, "heads hidden head_dim"]


@torch.no_grad()
def copying(request: RoleRequest) -> tuple[Measure, ...]:
    """Return ``sum_i Re(l_i) / sum_i |l_i|`` over the eigenvalues of ``W_U O_h V_h W_E``: 1 where every token raises itself.

    They are those of ``V_h W_E W_U O_h``, which is as small as a head. Norms and MLPs are left out.

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, "summarizing OV/QK matrices". That a head
    copies above 0.5 is a convention, not theirs.

    Raises:
        UnsupportedError: The model has no unembedding, or no attention is linear in what it looks at.
    """
    return (_eigenvalues(request, role="copying", sign=1),)


@torch.no_grad()
def suppressing(request: RoleRequest) -> tuple[Measure, ...]:
    """Return :func:`copying` with the opposite sign: 1 where every token lowers itself.

    Source: McDougall et al., "Copy Suppression", 2023, with the summary of :func:`copying`.

    Raises:
        UnsupportedError: As :func:`copying`.
    """
    return (_eigenvalues(request, role="suppressing", sign=-1),)


@torch.no_grad()
def own_rank(request: RoleRequest) -> tuple[Measure, ...]:
    """Return the shares of random tokens that come among the 5 likeliest, and among the 10 least likely, if they are looked at.

    What the head looks at is the hidden state after the first block of a text of that token alone, the "effective embedding".

    Source: McDougall et al., "Copy Suppression: Comprehensively Understanding an Attention Head", 2023, section 3.

    Raises:
        UnsupportedError: As :func:`copying`.
    """
    tokens = _random_tokens(request)
    unembedding = _embeddings(request)[1]
    of_tokens = unembedding[tokens.to(unembedding.device)].cpu().float()
    states = _after_first_block(request, tokens).cpu()
    ranks: dict[Any, Tensor] = {}
    for maps in ov_maps(request):
        written = states @ maps.value.transpose(1, 2) @ maps.output.transpose(1, 2)
        own = (written * of_tokens).sum(-1, keepdim=True)
        above = torch.zeros(own.shape[:2], dtype=torch.long)
        for start, part in _in_chunks(unembedding):
            higher = written @ part.T > own
            here = ((tokens >= start) & (tokens < start + len(part))).nonzero().flatten()
            higher[:, here, tokens[here] - start] = (
                False  # none is above itself, however it is rounded
            )
            above += higher.sum(-1)
        ranks |= {(maps.site.id, head): above[i] for i, head in enumerate(maps.site.heads)}
    size, n = len(unembedding), len(tokens)
    bounds = {f"top {_TOP}": (0, _TOP), f"bottom {_BOTTOM}": (size - _BOTTOM, size)}
    measures = []
    for column, (low, high) in bounds.items():
        within = {head: (above >= low) & (above < high) for head, above in ranks.items()}
        shares = [
            float(within[tuple(head)].float().mean()) if tuple(head) in within else None
            for head in request.anatomy.heads
        ]
        errors = [sqrt((share or 0) * (1 - (share or 0)) / max(1, n - 1)) for share in shares]
        chance = (high - low) / size
        one = _measure("own-rank", shares, errors=errors, baseline=chance, n=n)
        measures.append(one.model_copy(update={"column": column}))
    return tuple(measures)


def _random_tokens(request: RoleRequest) -> Tensor:
    """Return random tokens, none of them special."""
    size = len(_embeddings(request)[1])
    known = len(request.tokenizer) if request.tokenizer else size
    usual = torch.arange(min(size, known))
    special = torch.tensor(request.special_ids, dtype=torch.long)
    usual = usual[~torch.isin(usual, special)]
    generator = torch.Generator().manual_seed(request.seed)
    return usual[torch.randperm(len(usual), generator=generator)[:_TOKENS]]


def _eigenvalues(request: RoleRequest, *, role: str, sign: int) -> Measure:
    embedding, unembedding = _embeddings(request)
    pairs = zip(_in_chunks(embedding), _in_chunks(unembedding), strict=True)
    between = torch.stack(
        [first.double().T @ last.double() for (_, first), (_, last) in pairs]
    ).sum(0)
    shares: dict[Any, float] = {}
    for maps in ov_maps(request):
        circuits = maps.value.double() @ between @ maps.output.double()
        values = torch.linalg.eigvals(circuits)
        total = values.abs().sum(-1).tolist()
        for head, real, size in zip(
            maps.site.heads, values.real.sum(-1).tolist(), total, strict=True
        ):
            if size:  # a head that writes nothing neither copies nor suppresses
                shares[maps.site.id, head] = sign * real / size
    numbers = [shares.get(tuple(head)) for head in request.anatomy.heads]
    return _measure(role, numbers, errors=None, baseline=0.0, n=len(unembedding))


def _embeddings(request: RoleRequest) -> tuple[Tensor, Tensor]:
    """Return embedding and unembedding [vocabulary, hidden], as they are.

    Raises:
        UnsupportedError: One of them isn't there, or they are of different widths.
    """
    model = request.model
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    first, last = (value_of(part, "weight") if hasattr(part, "weight") else None for part in parts)
    if first is None or last is None or first.shape[-1] != last.shape[-1]:
        raise UnsupportedError(
            "the model has no unembedding of its embedding's width",
            where=type(model).__name__,
            hint="leave the role out",
        )
    size = min(len(first), len(last))
    return first[:size], last[:size]


def _in_chunks(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield some rows at a time, in single precision on the CPU, with the place of the first."""
    for start in range(0, len(weight), _CHUNK):
        yield start, weight[start : start + _CHUNK].cpu().float()


def ov_maps(request: RoleRequest) -> Iterator[OvMaps]:
    """Yield what the heads of every self-attention read and write, where that is linear.

    Raises:
        UnsupportedError: It is nowhere.
    """
    model, anatomy = request.model, request.anatomy
    calls = _calls(request)
    count = 0
    for site in anatomy.sites:
        if site.id not in calls or site.gate != site.output or not site.heads:
            continue
        value = _value_map(request, site, *calls[site.id])
        if value is not None:
            count += 1
            yield OvMaps(
                site, value.cpu(), _output_map(model.get_submodule(site.output), site).cpu()
            )
    if not count:
        raise UnsupportedError(
            "no attention is linear in what it looks at, or it doesn't say so",
            where=f"{type(model).__name__} ({anatomy.model_type})",
            hint="leave the role out",
        )


@torch.no_grad()
def _calls(request: RoleRequest) -> dict[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return how each attention is called in a forward of one token."""
    model = request.model
    calls: dict[Any, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(name: Any) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] = (args, kwargs)

        return hook

    handles = [
        model.get_submodule(site.path).register_forward_pre_hook(note(site.id), with_kwargs=True)
        for site in request.anatomy.sites
        if site.id.kind == "self"
    ]
    start = model.config.get_text_config().bos_token_id or 0
    try:
        forward(model, {"input_ids": torch.tensor([[start]], device=input_device(model))})
    finally:
        for handle in handles:
            handle.remove()
    return calls


@torch.no_grad()
def _value_map(
    request: RoleRequest, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return ``V_h`` of the heads of an attention; None where ``z`` isn't linear in what it looks at."""
    states = next((part for part in (*args, *kwargs.values()) if _are_states(part)), None)
    if states is None:
        return None
    width = states.shape[-1]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, width, generator=generator).to(states)
    rows = torch.cat([torch.zeros_like(probe), probe, torch.eye(width).to(states)])

    def replaced(part: Any) -> Any:
        return rows[:, None, :] if part is states else part

    with observed(request.model, request.anatomy) as seen:
        request.model.get_submodule(site.path)(
            *map(replaced, args), **{name: replaced(part) for name, part in kwargs.items()}
        )
    z = seen[site.id][-1].reshape(len(rows), len(site.heads), site.head_dim).float()
    linear = z - z[:1]
    value = linear[2:].permute(1, 2, 0)
    expected = torch.einsum("hdw,w->hd", value, probe[0].float())
    error = (expected - linear[1]).abs().max() / linear[1].abs().max().clamp_min(1e-9)
    allowed = max(_LINEAR, _ROUNDINGS * torch.finfo(states.dtype).eps)
    return value if float(error) < allowed else None


def _are_states(part: Any) -> bool:
    return (
        isinstance(part, Tensor)
        and part.is_floating_point()
        and part.shape[:2] == (1, 1)
        and part.dim() == 3
    )


@torch.no_grad()
def _output_map(projection: Any, site: Site) -> Float[Tensor, "heads hidden head_dim"]:
    """Return ``O_h``: the output projection of unit vectors, without its bias."""
    slots = len(site.slots) * site.head_dim
    dtype = next(projection.parameters()).dtype
    unit = torch.eye(slots, device=input_device(projection), dtype=dtype)
    output: Tensor = (projection(unit) - projection(torch.zeros_like(unit[:1]))).float()
    by_slot = output.reshape(len(site.slots), site.head_dim, -1).transpose(1, 2)
    return by_slot[[site.slots.index(head) for head in site.heads]]


def _after_first_block(request: RoleRequest, tokens: Tensor) -> Float[Tensor, "tokens hidden"]:
    """Return the hidden state after the first block of texts of one token."""
    model = request.model
    ids = tokens[:, None].to(input_device(model))
    inputs: dict[str, Any] = {"input_ids": ids, "output_hidden_states": True}
    states: Tensor = forward(model, inputs).hidden_states[1]
    return states[:, 0].float()


def _measure(
    role: str,
    shares: Sequence[float | None],
    *,
    errors: Sequence[float] | None,
    baseline: float,
    n: int,
) -> Measure:
    """Return a measure of one number per head.

    Args:
        role: The role.
        shares: The numbers; None where a head has none.
        errors: Their standard errors; None where nothing was sampled.
        baseline: What chance comes to.
        n: How many tokens each number is of.
    """
    half = [0.0] * len(shares) if errors is None else [Z_95 * error for error in errors]
    pairs = list(zip(shares, half, strict=True))
    known = errors is not None
    return Measure(
        role=role,
        values=tuple(shares),
        low=tuple(value - wide if value is not None and known else None for value, wide in pairs),
        high=tuple(value + wide if value is not None and known else None for value, wide in pairs),
        baseline=tuple(None if value is None else baseline for value in shares),
        queries=tuple(0 if value is None else n for value in shares),
        examples=tuple(0 if value is None else n for value in shares),
    )
