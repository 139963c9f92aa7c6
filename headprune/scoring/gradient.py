"""Michel et al. 2019, eq. 2: how much the loss of each example would move with a head's gate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, forward, input_device
from headprune.masking import gated
from headprune.passes import Pass, each_batch
from headprune.replay import Tape, example_losses
from headprune.scoring.estimate import Estimate, mean_and_error


def gradient(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    over: Pass,
) -> Estimate:
    """Score heads by ``I_h = mean_n |d l_n / d xi_h|`` at ``xi = 1``, with ``xi_h`` a gate on the head's output.

    The absolute value is taken per **example**, as in the paper: taken per batch, or per token of a batch-mean loss, the
    ranking depends on the batch size. Every row of a batch has gates of its own, so one backward gives all examples. Weights are
    frozen meanwhile: the backward goes to activations only.

    Source: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019.
    """
    del seed
    with _frozen(model):
        parts = each_batch(
            batches,
            lambda batch: _sums(model, anatomy, batch, loss),
            shape=lambda _batch: (2, len(anatomy.heads)),
            dtype=torch.float64,
            over=over,
            name="gradient",
        )
    total, squares = torch.stack(parts).sum(0)
    return mean_and_error(total, squares, n=sum(batch.num_examples for batch in batches))


def _sums(
    model: PreTrainedModel, anatomy: Anatomy, batch: Batch, loss: Loss
) -> Float64[Tensor, "2 heads"]:
    """Return the sum over the examples of a batch of ``|d l_n / d xi_h|``, and of its square."""
    batch = batch.to(input_device(model))
    xi = torch.ones(
        batch.num_examples,
        len(anatomy.heads),
        device=batch.example_of_row.device,
        requires_grad=True,
    )
    tape = Tape(model, anatomy)
    with (
        torch.enable_grad(),
        gated(model, anatomy, gates=xi[batch.example_of_row]),
        tape.recording(),
    ):
        found = example_losses(
            model,
            batch,
            loss,
            run=lambda: forward(model, batch.inputs),
            rerun=lambda: tape.rerun(batch),
        )
        (moves,) = torch.autograd.grad(found.sum(), xi)
    sizes = moves.abs().cpu().double()
    return torch.stack([sizes.sum(0), sizes.square().sum(0)])


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
