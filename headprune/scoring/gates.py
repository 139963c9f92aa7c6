"""Voita et al. 2019: every head gets a gate that costs something to keep open, and gates learn which heads are worth it."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.optim.adam import adam
from transformers import PreTrainedModel

from headprune.allocator import kept_memory
from headprune.anatomy import Anatomy
from headprune.batch import Batch, Loss, num_examples
from headprune.memory import Parts
from headprune.passes import RunContext, kept
from headprune.replay import losses
from headprune.scoring.derivatives import derivatives, frozen
from headprune.scoring.estimate import Estimate
from headprune.scoring.hard_concrete import open_probability, sample

# Steps of training, or one pass over the data where that is more: with the rate, how far a gate can move.
_STEPS = 200
_RATE = 0.1
# P(gate != 0) = 0.94: a model whose weights are frozen can't get used to gates that are half open.
_START = 2.0
# What an open gate costs, of what a head is worth on average: the loss without any head less the loss with all, by heads.
_PRICE = 0.5


def gates(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    seed: int,
    context: RunContext,
) -> Estimate:
    """Score heads by the ``log_alpha_h`` of gates ``g_h`` that were trained for low ``mean_n l_n(g) + lambda sum_h P(g_h != 0)``.

    Gates are hard concrete; their ``log_alpha`` is all that is trained, weights are frozen. It ranks heads as ``P(g_h != 0)``
    does, which grows with it, but without ties where that is 0 or 1 to the last digit. ``lambda`` is half of what a head is worth
    on average (:func:`average_worth`), so that scores don't change with the unit of the loss. Every example draws gates of its
    own, from ``seed``. A step of Adam takes one batch; the cost is 200 batches forward and backward to activations, or all of
    them once where there are more.

    Like the ``:batch`` methods, and unlike all others, scores depend on how examples are spread over batches, for steps do. Steps
    follow each other, so processes can't share them; a run that was stopped goes on after its last step.

    Source: Voita et al., "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned",
    ACL 2019, section 5.1. There the weights go on learning beside the gates.
    """
    price = _PRICE * average_worth(model, anatomy, batches=batches, loss=loss, context=context)
    log_alpha = trained_gates(
        model, anatomy, batches=batches, loss=loss, price=price, seed=seed, context=context
    )
    return Estimate(log_alpha, None, num_examples(batches))


def average_worth(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    context: RunContext,
) -> float:
    """Return ``|l(no heads) - l(all heads)| / heads``, with ``l`` the mean loss of the data: in what gates are priced."""
    heads = len(anatomy.heads)
    ends = torch.stack([torch.ones(heads), torch.zeros(heads)])
    found = losses(
        model, anatomy, batches=batches, loss=loss, masks=ends, context=context, name="gates"
    )
    full, empty = found.double().mean(1).tolist()
    return abs(float(empty - full)) / heads


def trained_gates(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    batches: Sequence[Batch],
    loss: Loss,
    price: float,
    seed: int,
    context: RunContext,
) -> Float64[Tensor, " heads"]:
    """Return the ``log_alpha`` of gates that were trained for a price.

    Args:
        model: The model, in eval mode.
        anatomy: Its anatomy.
        batches: The data; every pass takes them in another order.
        loss: One loss per example.
        price: ``lambda``, what an open gate costs, in units of the loss.
        seed: Of the order and of the noise.
        context: How to go over the data. Its processes share nothing of this: each would do it all.
    """
    generator = torch.Generator().manual_seed(seed)
    passes = -(-_STEPS // len(batches))
    orders = [torch.randperm(len(batches), generator=generator) for _ in range(passes)]
    ordered = [batches[place] for order in orders for place in order.tolist()]
    # What Adam goes on from: log_alpha, the mean of its gradients, the mean of their squares.
    state = torch.zeros(3, len(anatomy.heads), dtype=torch.float64)
    state[0] = _START
    # The sum over a batch counts against the price as the mean over the data does, however many examples the batch has.
    weight = len(batches) / num_examples(batches)

    def stepped(batch: Batch, noise: Tensor, step: int) -> Tensor:
        at = {"log_alpha": state[0], "noise": noise}
        slope = gradient(model, anatomy, batch, loss, **at, weight=weight, price=price)
        return _moved(state, slope, step=step)

    with frozen(model), kept_memory():
        for step, batch in enumerate(context.track(ordered, "gates") if context.track else ordered):
            # Drawn for steps that the journal has, too: those that follow are to find the same noise.
            shape = (batch.num_examples, len(anatomy.heads))
            noise = torch.rand(shape, generator=generator, dtype=torch.float64)
            state = kept(
                context.journal,
                f"gates-step-{step:06d}",
                partial(stepped, batch, noise, step),
                notify=context.notify,
            )
    return state[0]


def gradient(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batch: Batch,
    loss: Loss,
    *,
    log_alpha: Float64[Tensor, " heads"],
    noise: Float64[Tensor, "examples heads"],
    weight: float,
    price: float,
) -> Float64[Tensor, " heads"]:
    """Return the gradient of ``weight sum_n l_n(g_n) + price sum_h P(g_h != 0)`` in ``log_alpha``.

    Args:
        model: The model, its weights frozen.
        anatomy: Its anatomy.
        batch: The examples.
        loss: One loss per example.
        log_alpha: Where the gates are.
        noise: What every example's gates ``g_n`` are sampled with, uniform between 0 and 1.
        weight: Of an example.
        price: ``lambda``.
    """
    log_alpha = log_alpha.clone().requires_grad_()
    with torch.enable_grad():
        sampled = sample(log_alpha, noise)
        slopes = _slopes(model, anatomy, batch, loss, at=sampled.detach().float())
        # Linear in the gates, with the slopes of the loss: so its gradient is that of the loss.
        cost = (
            weight * (slopes.double() * sampled).sum() + price * open_probability(log_alpha).sum()
        )
    (found,) = torch.autograd.grad(cost, log_alpha)
    slope: Tensor = found
    return slope


def _slopes(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batch: Batch,
    loss: Loss,
    *,
    at: Float[Tensor, "examples heads"],
) -> Float[Tensor, "examples heads"]:
    """Return the derivatives of every example: where memory runs out, of half of them at a time."""

    def halves(piece: tuple[Batch, Tensor]) -> list[tuple[Batch, Tensor]]:
        two = piece[0].halves()
        return (
            list(zip(two, piece[1].split([half.num_examples for half in two]), strict=True))
            if two
            else []
        )

    parts = Parts[tuple[Batch, Tensor]]("gates", halves)
    return torch.cat(
        parts.run(
            (batch, at), lambda piece: derivatives(model, anatomy, piece[0], loss, at=piece[1])
        )
    )


def _moved(
    state: Float64[Tensor, "3 heads"], slope: Float64[Tensor, " heads"], *, step: int
) -> Float64[Tensor, "3 heads"]:
    """Return the state after a step of Adam, the ``step``-th from 0 on."""
    log_alpha, mean, squares = state.clone()
    adam(
        [log_alpha],
        [slope],
        [mean],
        [squares],
        [],
        [torch.tensor(float(step))],
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=_RATE,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )
    return torch.stack([log_alpha, mean, squares])
