"""From a forward to the loss of every example, a bounded piece of logits at a time.

A language model's logits are its largest tensor by far: 4,096 tokens over 128,256 words are 2 GB. A loss that is a sum over
positions needs only some at once. So the layer that makes the logits runs on one position, what it would have read is kept, and
it runs on that piece by piece.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.batch import Batch, Loss, PositionLoss, per_example
from headprune.replay.record import part

# Logits that exist at a time. On a CPU more would leave its caches; a GPU wants large products.
_AT_ONCE = {"cpu": 2**24, "cuda": 2**27}
_AT_ONCE_ELSEWHERE = 2**25

Forward = Callable[[], Any]
Project = Callable[[Tensor], Tensor]


def example_losses(
    model: PreTrainedModel,
    batch: Batch,
    loss: Loss,
    *,
    run: Forward,
    rerun: Forward | None = None,
    copies: int = 1,
    at_once: int | None = None,
) -> Float[Tensor, "copies examples"]:
    """Run a forward and return the loss of every example of every copy, in fp32. Differentiable where grad is on.

    Args:
        model: The model.
        batch: The examples.
        loss: One loss per example; only a :class:`PositionLoss` is taken in pieces.
        run: Runs the model on ``copies`` times the batch's rows.
        rerun: Runs nothing but what comes after the blocks. Needed where a model does something with its logits (scales or
            bounds them); without it, the logits of such a model are made all at once.
        copies: How many times the rows of the batch are there, one copy after the other.
        at_once: How many logits exist at a time, at least those of one position of every row.

    Raises:
        DataError: The loss isn't one number per example.
    """
    head = model.get_output_embeddings() if isinstance(loss, PositionLoss) else None
    if head is None or not isinstance(loss, PositionLoss):
        return _whole(run(), batch, loss, copies)
    with _one_position(head) as seen:
        outputs = run()
    if len(seen) != 1 or seen[0][0].dim() != 3:
        return _whole(run(), batch, loss, copies)
    (hidden, output, version), logits = seen[0], outputs.logits
    del outputs
    # The head's own output, and nothing was done to it in place.
    plain = logits.data_ptr() == output.data_ptr() and output._version == version
    plain = plain and logits.shape == output.shape
    if not plain and rerun is None:
        return _whole(run(), batch, loss, copies)
    project = head if plain or rerun is None else _followed(head, rerun)
    limit = at_once or _AT_ONCE.get(hidden.device.type, _AT_ONCE_ELSEWHERE)
    step = max(1, limit // (batch.num_rows * logits.shape[-1]))
    parts = [
        _pieces(rows, batch, loss, project, step)
        for rows in hidden.split(hidden.shape[0] // copies)
    ]
    return torch.stack(parts)


def _whole(outputs: Any, batch: Batch, loss: Loss, copies: int) -> Tensor:
    rows = batch.num_rows
    return torch.stack(
        [
            per_example(loss, part(outputs, copy, copies=copies, rows=rows), batch).float()
            for copy in range(copies)
        ]
    )


@contextmanager
def _one_position(head: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, int]]]:
    """Let ``head`` run on the first position only; collect what it read, and its output for that position with its version."""
    seen: list[tuple[Tensor, Tensor, int]] = []
    read: list[Tensor] = []

    def shorten(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(args[0])
        return (args[0][:, :1], *args[1:])

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen.append((read[-1], output, output._version))

    handles = [head.register_forward_pre_hook(shorten), head.register_forward_hook(keep)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _followed(head: nn.Module, rerun: Forward) -> Project:
    """Return ``head`` and what the model does with its output."""

    def project(hidden: Tensor) -> Tensor:
        handle = head.register_forward_pre_hook(lambda _module, args: (hidden, *args[1:]))
        try:
            logits: Tensor = rerun().logits
        finally:
            handle.remove()
        return logits

    return project


class _Pieces(torch.autograd.Function):
    """The loss of every example from what the head reads; its gradient is made on the way, piece by piece too.

    An example's loss reads its own rows only, so the gradient of the sum of all losses is every example's own gradient, and what
    comes from above scales it row by row.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, batch: Batch, loss: PositionLoss, project: Project, step: int
    ) -> Tensor:
        needs_grad = hidden.requires_grad
        total = torch.zeros(batch.num_examples, device=batch.example_of_row.device)
        gradient = torch.zeros_like(hidden) if needs_grad else None
        stop = loss.stop(batch)
        for start in range(0, stop, step):
            piece = hidden[:, start : min(start + step, stop)].detach().requires_grad_(needs_grad)
            with torch.set_grad_enabled(needs_grad):
                logits = project(piece).to(total.device)
                values = loss.part(logits, start, batch).float()
                summed = values.sum()
            if gradient is not None:
                (slope,) = torch.autograd.grad(summed, piece)
                gradient[:, start : start + piece.shape[1]] = slope
            total += values.detach()
        ctx.example_of_row = batch.example_of_row
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> Any:
        by_row = above[0][ctx.example_of_row].view(-1, 1, 1).to(ctx.gradient)
        return ctx.gradient * by_row, None, None, None, None


_pieces: Callable[[Tensor, Batch, PositionLoss, Project, int], Tensor] = _Pieces.apply
