"""Detectors on random tokens said twice: only the second time can they be predicted, by heads that look back."""

import torch
from jaxtyping import Bool
from torch import Tensor

from headprune.analysis.call import AttentionCall
from headprune.analysis.positions import Columns
from headprune.batch import Batch


def repeated_sequences(
    *, vocabulary: int, special: list[int], start: int | None, length: int, count: int, seed: int
) -> tuple[Batch, ...]:
    """Return rows ``[start, r, r]`` of random tokens, no token twice within ``r``.

    Args:
        vocabulary: How many tokens there are.
        special: Ids that aren't drawn.
        start: The id at the start of a row, if the model has one.
        length: Of ``r``, in tokens.
        count: How many rows.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    left_out = set(special)
    usual = torch.tensor([token for token in range(vocabulary) if token not in left_out])
    length = min(length, len(usual))
    rows = []
    for _ in range(count):
        drawn = usual[torch.randperm(len(usual), generator=generator)[:length]]
        first = [] if start is None else [torch.tensor([start])]
        rows.append(torch.cat([*first, drawn, drawn]))
    ids = torch.stack(rows)
    return tuple(
        Batch({"input_ids": part}, torch.arange(len(part)), torch.arange(len(part)), indices)
        for part, indices in zip(ids.split(_ROWS), torch.arange(count).split(_ROWS), strict=True)
    )


_ROWS = 16
"""Sequences in a batch."""


def induction(call: AttentionCall) -> Columns:
    """Return the attention to the tokens that followed earlier copies of the query's token; queries without a copy don't count.

    Source: Olsson et al., "In-context Learning and Induction Heads", 2022 (prefix matching). It is TransformerLens's
    ``induction_head`` score by ``mul``, over the queries that have a copy instead of over all.
    """
    copies = _earlier_copies(call)
    if copies is None:
        return {}
    after = torch.zeros_like(copies)
    after[:, :, 1:] = copies[:, :, :-1]
    return {"": _where_any(call, after)}


def duplicate(call: AttentionCall) -> Columns:
    """Return the attention to earlier copies of the query's token; queries without a copy don't count.

    Source: Wang et al., "Interpretability in the Wild", ICLR 2023. It is TransformerLens's ``duplicate_token_head`` score by
    ``mul``, over the queries that have a copy instead of over all.
    """
    copies = _earlier_copies(call)
    return {} if copies is None else {"": _where_any(call, copies)}


def _earlier_copies(call: AttentionCall) -> Bool[Tensor, "rows queries keys"] | None:
    """Return where a key before the query is the same token; None where positions are no tokens of one sequence."""
    if call.is_cross or call.query_ids is None or call.key_ids is None:
        return None
    same = call.query_ids[:, :, None] == call.key_ids[:, None, :]
    return same & (call.offsets < 0) & call.is_same_text


def _where_any(call: AttentionCall, pattern: Tensor) -> Tensor:
    numbers = call.along(pattern)
    return numbers.masked_fill(~pattern.any(-1)[:, None], torch.nan)
