"""How many operations exact leave-one-out ablation needs at the least, and what the machine can do."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.speed.clock import timed


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer of equal blocks.

    Args:
        layers: Blocks.
        width: Width of the hidden states.
        inner: Width of the feed-forward part.
        inner_matrices: Its matrices: 2, or 3 where it is gated.
        heads: Query heads per block.
        key_value_heads: Key/value heads per block.
        head_dim: Width of a head.
        words: Words that the output head tells apart; 0 where there is none, or one so small that it doesn't count.
        causal: Whether a position sees itself and earlier ones only.
    """

    layers: int
    width: int
    inner: int
    inner_matrices: int
    heads: int
    key_value_heads: int
    head_dim: int
    words: int
    causal: bool


def shape_of(model: PreTrainedModel, *, predicts_words: bool) -> Shape:
    """Read the sizes from a model's config; ``predicts_words`` tells whether its loss reads logits of every position."""
    config = model.config
    gated = any(name.endswith("gate_proj") for name, _module in model.named_modules())
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=config.intermediate_size,
        inner_matrices=3 if gated else 2,
        heads=heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        words=config.vocab_size if predicts_words else 0,
        causal=predicts_words,
    )


def minimal_flops(
    shape: Shape, batches: Iterable[tuple[int, int]], *, needed_positions: int | None = None
) -> float:
    """Return the least floating-point operations of the losses without each head, one head at a time, and with all.

    A multiplication and an addition count as two. With ``rows`` rows of ``length`` tokens (padding included), a matrix of
    ``a x b`` costs ``2 a b`` a token, and attention ``2 * 2 * keys * heads * head_dim`` a token (scores and values), with
    ``keys = length``, or ``(length + 1) / 2`` where positions see earlier ones only. Then

        block     = queries + keys and values + attention + output projection + feed-forward part
        recorded  = layers * block + output head
        head in l = its part ``z_h W_O,h`` + feed-forward part + (layers - 1 - l) * block + output head
        total     = recorded + sum over all heads of all layers

    The output head counts at the positions that predict, all but the last of each row. Embeddings, norms, activations, the
    softmax and a pooler are left out.

    Args:
        shape: The model's sizes.
        batches: ``(rows, length)`` of every batch.
        needed_positions: At how many positions of a row the last block's output is needed (None: all): a classifier that
            reads the first position needs one. Keys and values of the last block are needed at all of them. The default
            counts what a forward of the model itself computes; a replay that leaves positions out does less than that, and
            its share of the peak comes out too high unless this is given.
    """
    total = 0.0
    for rows, length in batches:
        needed = min(needed_positions or length, length)
        keys = (length + 1) / 2 if shape.causal else length
        inside = shape.heads * shape.head_dim
        query_side = 2 * 2 * shape.width * inside + 2 * 2 * keys * inside
        key_side = 2 * 2 * shape.width * shape.key_value_heads * shape.head_dim
        inner = 2 * shape.inner_matrices * shape.width * shape.inner
        part = 2 * shape.head_dim * shape.width
        block = length * (query_side + key_side + inner)
        last = length * key_side + needed * (query_side + inner)
        words = 2 * shape.width * shape.words * (length - 1)
        row = (shape.layers - 1) * block + last + words
        for layer in range(shape.layers - 1):
            after = shape.layers - 1 - layer
            one = length * (part + inner) + (after - 1) * block + last + words
            row += shape.heads * one
        row += shape.heads * (needed * (part + inner) + words)
        total += rows * row
    return total


@dataclass
class Peak:
    """The most operations a second that this machine was seen to do in a matrix product, several shapes tried.

    Args:
        device: What is measured.
        shapes: ``(rows, inner, columns)`` of the products.
        dtype: Of the matrices.
        samples: The best of each time it was measured.
    """

    device: torch.device
    shapes: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype = torch.float32
    samples: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The best of all."""
        return max(self.samples)

    def sample(self, *, times: int = 4) -> None:
        """Measure once more."""
        best = 0.0
        for rows, inner, columns in self.shapes:
            one = torch.randn(rows, inner, device=self.device, dtype=self.dtype)
            other = torch.randn(inner, columns, device=self.device, dtype=self.dtype)
            made = torch.empty(rows, columns, device=self.device, dtype=self.dtype)
            product = partial(torch.mm, one, other, out=made)
            seconds = min(timed(self.device, product)[0] for _ in range(times))
            best = max(best, 2 * rows * inner * columns / seconds)
        self.samples.append(best)
