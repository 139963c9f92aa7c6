"""Michel et al. 2019, eq. 2: how much the loss of each example would move with a head's gate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, forward, per_example
from headprune.masking import gated
from headprune.scoring.estimate import Estimate, Track, mean_and_error


def gradient(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    track: Track | None,
) -> Estimate:
    """Score heads by ``I_h = mean_n |d l_n / d xi_h|`` at ``xi = 1``, with ``xi_h`` a gate on the head's output.

    The absolute value is taken per **example**, as in the paper: taken per batch, or per token of a batch-mean loss, the
    ranking depends on the batch size. Every row of a batch has gates of its own, so one backward gives all examples. Weights are
    frozen meanwhile: the backward goes to activations only.

    Source: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019.
    """
    del seed
    device = next(model.parameters()).device
    heads = len(anatomy.heads)
    total = torch.zeros(heads, dtype=torch.float64)
    squares = torch.zeros_like(total)
    n = 0
    with _frozen(model):
        for batch in track(batches, "scoring (gradient)") if track else batches:
            moved = batch.to(device)
            xi = torch.ones(batch.num_examples, heads, device=device, requires_grad=True)
            with torch.enable_grad(), gated(model, anatomy, gates=xi[moved.example_of_row]):
                found = per_example(loss, forward(model, moved.inputs), moved)
                (moves,) = torch.autograd.grad(found.float().sum(), xi)
            sizes = moves.abs().double().cpu()
            total += sizes.sum(0)
            squares += sizes.square().sum(0)
            n += batch.num_examples
    return mean_and_error(total, squares, n=n)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
