"""What a detector is given: one attention on some rows, with what its positions are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headprune.analysis.trees import Tree
from headprune.anatomy.sites import Site
from headprune.batch import Batch
from headprune.masking import padding_mask

Fact = TypeVar("Fact")

_DECODER_IDS = "decoder_input_ids"


@dataclass(frozen=True)
class Needle:
    """Where the code word of a trial stands.

    Args:
        start: Its first position in the text.
        stop: The position after its last.
        first: The position that predicts the first token of the answer.
        length: How many tokens the answer has.
    """

    start: int
    stop: int
    first: int
    length: int


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What is known of the rows' tokens.

    Args:
        cls: The id of [CLS], or of what the tokenizer calls so; None: there is none.
        sep: The id of [SEP].
        punctuation: Ids of full stops and commas.
        special: Ids that are no words.
        counts: How often each id occurs in the rows.
        trees: The parse of each example, by its place in the data, where there are any.
        relations: All relations of those.
        needles: Where the code word of each example stands, where one was hidden.
    """

    cls: int | None = None
    sep: int | None = None
    punctuation: tuple[int, ...] = ()
    special: tuple[int, ...] = ()
    counts: Int[Tensor, " vocabulary"] | None = None
    trees: Mapping[int, Tree] = field(default_factory=dict)
    relations: tuple[str, ...] = ()
    needles: Mapping[int, Needle] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any | None, batches: Sequence[Batch]) -> "Vocabulary":
        """Return what a tokenizer and the rows tell.

        Args:
            tokenizer: The model's, where it is known.
            batches: The rows.
        """
        counts: Counter[int] = Counter()
        for batch, name in product(batches, ("", "decoder_")):
            ids = batch.inputs.get(f"{name}input_ids")
            if ids is not None:
                real = batch.inputs.get(f"{name}attention_mask", torch.ones_like(ids)).bool()
                counts.update(
                    ids[real].tolist() if real.shape == ids.shape else ids.flatten().tolist()
                )
        table = torch.zeros(max(counts, default=-1) + 1, dtype=torch.long)
        for token, count in counts.items():
            table[token] = count
        if tokenizer is None:
            return cls(counts=table if counts else None)
        marks = tokenizer.convert_ids_to_tokens(sorted(counts)) if counts else []
        points = [
            token
            for token, text in zip(sorted(counts), marks, strict=True)
            if str(text).strip("Ġ▁ ") in (".", ",")
        ]
        return cls(
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tuple(points),
            tuple(tokenizer.all_special_ids),
            table if counts else None,
        )


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The attention weights of one attention on some rows.

    Args:
        weights: The weights; the last ones along the heads may be made up, as a baseline.
        is_query: Which positions ask: no padding, and no row that a window made up.
        is_key: Which positions can be looked at.
        query_ids: Tokens at the queries; None where positions are no tokens.
        key_ids: Tokens at the keys.
        starts: Which keys are the first of a text: of the row, or of each text that was packed into it.
        is_cross: Whether queries and keys are of two sequences.
        vocabulary: What is known of tokens.
        trees: The parse of each row; nothing where rows aren't parsed.
        needles: Where the code word of each row stands; nothing where none was hidden.
    """

    weights: Float[Tensor, "rows heads queries keys"]
    is_query: Bool[Tensor, "rows queries"]
    is_key: Bool[Tensor, "rows keys"]
    query_ids: Int[Tensor, "rows queries"] | None
    key_ids: Int[Tensor, "rows keys"] | None
    starts: Bool[Tensor, "rows keys"]
    is_cross: bool
    vocabulary: Vocabulary
    trees: tuple[Tree, ...] = ()
    needles: tuple[Needle, ...] = ()

    @property
    def offsets(self) -> Int[Tensor, "queries keys"]:
        """How far behind each query each key lies: -1 is the position before."""
        queries, keys = self.weights.shape[-2:]
        device = self.weights.device
        return torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None]

    @property
    def is_same_text(self) -> Bool[Tensor, "rows queries keys"]:
        """Whether query and key are of one text; between two sequences all keys are."""
        texts = self.starts.cumsum(-1)
        if self.is_cross or self.is_query.shape != self.is_key.shape:
            return self.is_key[:, None].expand(-1, self.weights.shape[2], -1)
        return (texts[:, :, None] == texts[:, None, :]) & self.is_key[:, None]

    def attention_to(self, mask: Bool[Tensor, "rows keys"]) -> Float[Tensor, "rows heads queries"]:
        """Return the attention of every query to the keys that a mask names."""
        return (self.weights * mask[:, None, None, :]).sum(-1)

    def along(self, pattern: Tensor) -> Float[Tensor, "rows heads queries"]:
        """Return the attention along a pattern [queries, keys] or [rows, queries, keys] of zeros and ones."""
        full = pattern if pattern.dim() == 3 else pattern[None]
        return (self.weights * full[:, None]).sum(-1)

    def largest(self) -> Float[Tensor, "rows heads queries keys"]:
        """Return :func:`at_largest` of the weights."""
        return at_largest(self.weights)


def at_largest(weights: Float[Tensor, "*batch keys"]) -> Float[Tensor, "*batch keys"]:
    """Return 1 at the largest weight of every query, shared where several are as large."""
    top = weights == weights.amax(-1, keepdim=True)
    return top / top.sum(-1, keepdim=True)


def attention_call(
    site: Site,
    weights: Float[Tensor, "rows heads queries keys"],
    batch: Batch,
    vocabulary: Vocabulary,
) -> AttentionCall:
    """Return the weights with what their positions are, and one more head that spreads its attention evenly.

    Args:
        site: The attention.
        weights: Its weights.
        batch: What the model was given.
        vocabulary: What is known of tokens.
    """
    rows, _, queries, keys = weights.shape
    device = weights.device
    is_cross = site.id.kind == "cross"
    asking = _positions(padding_mask(site, batch), (rows, queries), device)
    looked_at = (
        asking
        if not is_cross
        else _positions(batch.inputs.get("attention_mask"), (rows, keys), device)
    )
    if looked_at.shape[1] != keys:
        looked_at = torch.ones(rows, keys, dtype=torch.bool, device=device)
    in_decoder = site.id.stack == "decoder" and _DECODER_IDS in batch.inputs
    own = _DECODER_IDS if in_decoder else "input_ids"
    seen = (weights.amax(1, keepdim=True) > 0).float()
    even = seen / seen.sum(-1, keepdim=True).clamp_min(1)
    return AttentionCall(
        torch.cat([weights, even], dim=1),
        asking,
        looked_at,
        _ids(batch.inputs.get(own), (rows, queries), device),
        _ids(batch.inputs.get("input_ids" if is_cross else own), (rows, keys), device),
        _starts(looked_at, None if is_cross else batch.inputs.get("position_ids")),
        is_cross,
        vocabulary,
        _of_rows(vocabulary.trees, batch, rows) if own == "input_ids" else (),
        _of_rows(vocabulary.needles, batch, rows),
    )


def _of_rows(facts: Mapping[int, Fact], batch: Batch, rows: int) -> tuple[Fact, ...]:
    """Return the facts about each row; nothing where there are none, or rows have become several."""
    if not facts or rows != batch.num_rows:
        return ()
    examples = batch.indices[batch.example_of_row.cpu()].tolist()
    return tuple(facts[example] for example in examples)


def _positions(mask: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return which positions are real; all where that isn't told, or rows were rearranged."""
    if mask is None or tuple(mask.shape) != shape:
        return torch.ones(shape, dtype=torch.bool, device=device)
    return mask.bool().to(device)


def _ids(ids: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor | None:
    return ids.to(device) if ids is not None and tuple(ids.shape) == shape else None


def _starts(real: Tensor, position_ids: Tensor | None) -> Tensor:
    """Return which real positions are the first of a text: those where positions count from 0 again, too."""
    first = real & (real.cumsum(-1) == 1)
    if position_ids is None or position_ids.shape != real.shape:
        return first
    return first | (real & (position_ids == 0).to(real.device))
