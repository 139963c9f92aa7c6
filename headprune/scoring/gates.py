"""Voita et al. 2019: every head gets a gate that costs something to keep open, and gates learn which heads are worth it.

Gates are hard concrete: numbers from 0 to 1 that are exactly 0 or 1 with some probability, and have a gradient (Louizos, Welling,
Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018, section 2.2).
"""

import math
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.optim.adam import adam

from headprune.batch import Batch
from headprune.passes import Parts
from headprune.scoring.derivatives import derivatives, frozen
from headprune.scoring.request import Estimate, ScoreRequest

# Steps of training, or one pass over the data where that is more: with the rate, how far a gate can move.
_STEPS = 200
_RATE = 0.1
# P(gate != 0) = 0.94: a model whose weights are frozen can't get used to gates that are half open.
_START = 2.0
# What an open gate costs, of what a head is worth on average: the loss without any head less the loss with all, by heads.
_PRICE = 0.5

TEMPERATURE = 0.33
"""beta: the lower, the nearer samples are to 0 or 1. Voita et al. 2019 take the paper's constants, this and the next two."""
LOW, HIGH = -0.1, 1.1
"""gamma and zeta: the interval that samples are stretched to before what is outside of [0, 1] is clamped."""


def gates(request: ScoreRequest) -> Estimate:
    """Score heads by the ``log_alpha_h`` of gates ``g_h`` that were trained for low ``mean_n l_n(g) + lambda sum_h P(g_h != 0)``.

    Gates are hard concrete; their ``log_alpha`` is all that is trained, weights are frozen. It ranks heads as ``P(g_h != 0)``
    does, which grows with it, but without ties where that is 0 or 1 to the last digit. ``lambda`` is half of what a head is worth
    on average (:func:`average_worth`), so that scores don't change with the unit of the loss. Every example draws gates of its
    own, from the seed. A step of Adam takes one batch; the cost is 200 batches forward and backward to activations, or all of
    them once where there are more.

    Like the ``:batch`` methods, and unlike all others, scores depend on how examples are spread over batches, for steps do. Steps
    follow each other, so processes can't share them; an interrupted run resumes after its last step.

    Source: Voita et al., "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned",
    ACL 2019, section 5.1. There, the weights are trained together with the gates.
    """
    log_alpha = trained_gates(request, price=_PRICE * average_worth(request))
    return Estimate(log_alpha, None, request.num_examples)


def average_worth(request: ScoreRequest) -> float:
    """Return ``|l(no heads) - l(all heads)| / heads``, with ``l`` the mean loss of the data: in what gates are priced."""
    heads = len(request.anatomy.heads)
    ends = torch.stack([torch.ones(heads), torch.zeros(heads)])
    full, empty = request.losses(ends, name="gates").mean(1).tolist()
    return abs(float(empty - full)) / heads


def trained_gates(request: ScoreRequest, *, price: float) -> Float64[Tensor, " heads"]:
    """Return the ``log_alpha`` of gates that were trained for a price.

    Args:
        request: The model and the data; every pass takes the batches in another order. Its processes share nothing of this:
            each would do it all.
        price: ``lambda``, what an open gate costs, in units of the loss.
    """
    batches, context = request.batches, request.context
    generator = torch.Generator().manual_seed(request.seed)
    passes = -(-_STEPS // len(batches))
    orders = [torch.randperm(len(batches), generator=generator) for _ in range(passes)]
    ordered = [batches[index] for order in orders for index in order.tolist()]
    # The state of Adam: log_alpha, the mean of its gradients, the mean of their squares.
    state = torch.zeros(3, len(request.anatomy.heads), dtype=torch.float64)
    state[0] = _START

    def stepped(batch: Batch, noise: Tensor, step: int) -> Tensor:
        slope = gradient(request, batch, log_alpha=state[0], noise=noise, price=price)
        return _moved(state, slope, step=step)

    with frozen(request.model):
        for step, batch in enumerate(context.tracked(ordered, "gates")):
            # Drawn for steps that the journal has, too, so that later steps draw the same noise.
            shape = (batch.num_examples, len(request.anatomy.heads))
            noise = torch.rand(shape, generator=generator, dtype=torch.float64)
            state = context.kept(f"gates-step-{step:06d}", partial(stepped, batch, noise, step))
    return state[0]


def gradient(
    request: ScoreRequest,
    batch: Batch,
    *,
    log_alpha: Float64[Tensor, " heads"],
    noise: Float64[Tensor, "examples heads"],
    price: float,
) -> Float64[Tensor, " heads"]:
    """Return the gradient of ``weight sum_n l_n(g_n) + price sum_h P(g_h != 0)`` in ``log_alpha``.

    The weight is that of an example in the mean over the data, times the number of batches: a batch then counts against the price
    as the mean over the data does, however many examples it has.

    Args:
        request: The model, its weights frozen, and the data that the batch is of.
        batch: The examples.
        log_alpha: Where the gates are.
        noise: What every example's gates ``g_n`` are sampled with, uniform between 0 and 1.
        price: ``lambda``.
    """
    weight = len(request.batches) / request.num_examples
    log_alpha = log_alpha.clone().requires_grad_()
    with torch.enable_grad():
        sampled = sample(log_alpha, noise)
        slopes = _slopes(request, batch, at=sampled.detach().float())
        # Linear in the gates, with the slopes of the loss: so its gradient is that of the loss.
        cost = (
            weight * (slopes.double() * sampled).sum() + price * open_probability(log_alpha).sum()
        )
    slope: Tensor = torch.autograd.grad(cost, log_alpha)[0]
    return slope


def _slopes(
    request: ScoreRequest, batch: Batch, *, at: Float[Tensor, "examples heads"]
) -> Float[Tensor, "examples heads"]:
    """Return the derivatives of every example: where memory runs out, of half of them at a time."""

    def halves(piece: tuple[Batch, Tensor]) -> list[tuple[Batch, Tensor]]:
        two = piece[0].halves()
        sizes = [half.num_examples for half in two]
        return list(zip(two, piece[1].split(sizes), strict=True)) if two else []

    parts = Parts[tuple[Batch, Tensor]]("gates", halves)
    return torch.cat(
        parts.run((batch, at), lambda piece: derivatives(request, piece[0], at=piece[1]))
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


def sample(
    log_alpha: Float64[Tensor, " heads"], noise: Float64[Tensor, "examples heads"]
) -> Float64[Tensor, "examples heads"]:
    """Return gates ``clamp(s (zeta - gamma) + gamma, 0, 1)`` with ``s = sigmoid((log u - log(1 - u) + log_alpha) / beta)``.

    Differentiable in ``log_alpha`` where a gate is strictly between 0 and 1.

    Args:
        log_alpha: The distributions' locations.
        noise: The ``u``, uniform between 0 and 1.
    """
    return _stretched(torch.sigmoid((torch.logit(noise) + log_alpha) / TEMPERATURE))


def open_probability(log_alpha: Float64[Tensor, " heads"]) -> Float64[Tensor, " heads"]:
    """Return ``P(gate != 0) = sigmoid(log_alpha - beta log(-gamma / zeta))``."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def settled(log_alpha: Float64[Tensor, " heads"]) -> Float64[Tensor, " heads"]:
    """Return the gates without noise, ``clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1)``: 0 removes the head.

    >>> [round(gate, 9) for gate in settled(torch.tensor([-3.0, 0.0, 3.0]).double()).tolist()]
    [0.0, 0.5, 1.0]
    """
    return _stretched(torch.sigmoid(log_alpha))


def _stretched(values: Tensor) -> Tensor:
    return (values * (HIGH - LOW) + LOW).clamp(0, 1)
