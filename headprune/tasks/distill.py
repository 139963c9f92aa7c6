"""Objectives without labels: the distance of outputs to the unpruned model's outputs.

The whole model runs once and its outputs become the targets. A distance to them has no slope where nothing was removed yet: it is
at its minimum. What methods differentiate therefore compares with targets that were *sampled* around them, as the Fisher
information does: a class or a token from the model's distribution, an embedding with noise. The mean square of that slope is the
curvature of the distance, and once heads are removed the slope itself comes in.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from headprune.batch import Batch, Loss, PositionLoss, forward
from headprune.passes import Parts, halves_of_batch
from headprune.placement import input_device
from headprune.replay.logits import example_losses
from headprune.tasks.metrics import Metric

Generators = Sequence[torch.Generator]
"""One generator of random numbers an example."""


@dataclass(frozen=True)
class Distillation:
    """How a task does without labels.

    Args:
        outputs: ``(outputs, inputs) -> [rows, ...]``: what of a model's outputs is compared.
        distance: ``(student, teacher, inputs) -> [rows]``: how far apart two models are: 0 where both put out the same.
        targets: ``(model, batch, generators) -> [examples, ...]``: the outputs of the whole model.
        sample: ``(targets, generators) -> targets``: drawn around them.
        loss: ``(outputs, batch) -> [examples]``: the distance to ``batch.targets``.
    """

    outputs: Callable[[Any, Mapping[str, Tensor]], Tensor]
    distance: Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    targets: Callable[[PreTrainedModel, Batch, Generators], Tensor]
    sample: Callable[[Tensor, Generators], Tensor]
    loss: Loss


@dataclass(frozen=True, eq=False)
class Objective:
    """What importance is about: rows with targets, and a loss.

    Args:
        batches: The rows.
        sampled_batches: The same for methods that differentiate; with labels they are ``batches``.
        loss: One loss per example; with ``statistic``, the model's predictions in its place.
        statistic: The metric, where importance is about the metric itself.
    """

    batches: tuple[Batch, ...]
    sampled_batches: tuple[Batch, ...]
    loss: Loss
    statistic: Metric | None = None


NO_OBJECTIVE = Objective((), (), lambda _outputs, batch: torch.zeros(batch.num_examples))
"""Of methods that read no rows."""


@torch.no_grad()
def with_teacher_targets(
    model: PreTrainedModel, distillation: Distillation, batches: Sequence[Batch], *, seed: int
) -> Objective:
    """Run the whole model over ``batches`` and return them with its outputs as targets.

    Every example draws from a generator of its own, so that neither batches nor their order matter.

    Raises:
        MemoryLimitError: Memory ran out on a single example.
    """
    exact, sampled = [], []
    parts = Parts("the whole model's outputs", halves_of_batch)

    def targets_of(batch: Batch) -> Tensor:
        moved = batch.to(input_device(model))
        return distillation.targets(model, moved, _generators(batch, seed)).cpu()

    for batch in batches:
        targets = torch.cat(parts.run(batch, targets_of))
        around = distillation.sample(targets, _generators(batch, seed + 1))
        exact.append(replace(batch, targets=targets))
        sampled.append(replace(batch, targets=around))
    return Objective(tuple(exact), tuple(sampled), distillation.loss)


def predictions_as_loss(predict: Callable[[Any, Batch], tuple[Tensor, Any]]) -> Loss:
    """Return a loss whose values are the model's predictions: under every mask it is what the model then predicts."""

    def predictions(outputs: Any, batch: Batch) -> Tensor:
        return predict(outputs, batch)[0].float()

    return predictions


def _generators(batch: Batch, seed: int) -> Generators:
    """Return a generator an example; torch's for the CPU reads no more than 32 bits of a seed."""
    digests = (hashlib.sha256(f"{seed}:{index}".encode()) for index in batch.indices.tolist())
    seeds = (int.from_bytes(digest.digest()[:4], "big") for digest in digests)
    return [torch.Generator().manual_seed(one) for one in seeds]


def divergence(
    logits: Float[Tensor, "*rows classes"], p: Float[Tensor, "*rows classes"]
) -> Float[Tensor, "*rows"]:
    """Return ``KL(p || q) = sum_c p_c (log p_c - log q_c)``, ``q`` the softmax of the logits (Hinton et al. 2015, temperature 1).

    Its gradient by the logits is ``q - p``.
    """
    return kl_div(_single(logits).log_softmax(-1), p, reduction="none").sum(-1)


def class_distance(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    _inputs: Mapping[str, Tensor],
) -> Float[Tensor, " rows"]:
    """Return KL(teacher || student) of two distributions over classes, given as logits."""
    return divergence(student, _single(teacher).softmax(-1))


def token_distance(
    student: Float[Tensor, "rows positions vocabulary"],
    teacher: Float[Tensor, "rows positions vocabulary"],
    inputs: Mapping[str, Tensor],
) -> Float[Tensor, " rows"]:
    """Return KL(teacher || student) of the next token, the mean over the positions that have one: padding counts nowhere.

    A position counts where it and the next one are real, so a window of n tokens has n - 1; each window counts once, whatever
    its length.
    """
    real = inputs["attention_mask"]
    counts = real[:, :-1] * real[:, 1:]
    by_position = divergence(student[:, :-1], _single(teacher[:, :-1]).softmax(-1))
    return by_position.where(counts.bool(), 0.0).sum(-1) / counts.sum(-1).clamp(min=1)


def logits_of(outputs: Any, _inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the logits."""
    logits: Tensor = outputs.logits
    return logits


def _single(logits: Tensor) -> Tensor:
    """Return logits in single precision at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _class_probabilities(
    model: PreTrainedModel, batch: Batch, _generators: Generators
) -> Float[Tensor, "examples classes"]:
    return _single(forward(model, batch.inputs).logits).softmax(-1)


def _sample_class(
    probabilities: Float[Tensor, "examples classes"], generators: Generators
) -> Float[Tensor, "examples classes"]:
    """Return a distribution that is sure of a class drawn from each."""
    uniform = torch.cat([torch.rand(1, generator=g) for g in generators])
    chosen = _inverse_cumulative(probabilities, uniform)
    return torch.nn.functional.one_hot(chosen, probabilities.shape[-1]).to(probabilities)


def _inverse_cumulative(
    probabilities: Float[Tensor, "*rows classes"], uniform: Float[Tensor, "*rows"]
) -> Int[Tensor, "*rows"]:
    """Draw from each distribution by inverting its cumulative sum."""
    sums = probabilities.cpu().double().cumsum(-1)
    below = uniform[..., None].cpu().double() * sums[..., -1:]
    chosen: Tensor = (sums <= below).sum(-1).clamp_max(probabilities.shape[-1] - 1)
    return chosen.to(probabilities.device)


def _sample_tokens(
    model: PreTrainedModel, batch: Batch, generators: Generators
) -> Int[Tensor, "examples positions"]:
    """Return for every position but the last a token drawn from the model's distribution of what follows."""
    length = batch.inputs["input_ids"].shape[1]
    uniform = torch.stack([torch.rand(length - 1, generator=g) for g in generators])
    pieces: list[Tensor] = []

    def draw(logits: Tensor, start: int, batch: Batch) -> Tensor:
        part = uniform[:, start : start + logits.shape[1]].to(logits.device)
        pieces.append(_inverse_cumulative(logits.float().softmax(-1), part))
        return torch.zeros(batch.num_examples, device=logits.device)

    drawing = PositionLoss(draw, lambda _batch: length - 1)
    example_losses(model, batch, drawing, run=lambda: forward(model, batch.inputs))
    return torch.cat(pieces, dim=1)


def _token_likelihood(
    logits: Float[Tensor, "rows positions vocabulary"], start: int, batch: Batch
) -> Float[Tensor, " examples"]:
    """Mean negative log-likelihood of the drawn tokens: ``KL(p || q)`` and the entropy of ``p``, but for the luck of the draw."""
    stop = start + logits.shape[1]
    real = batch.inputs["attention_mask"]
    mask = real[:, start + 1 : stop + 1] * real[:, start:stop]
    labels = batch.targets[:, start:stop]
    by_token = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    count = (real[:, 1:] * real[:, :-1]).sum(1)
    return (by_token.view(labels.shape) * mask).sum(1) / count


CLASSES = Distillation(
    outputs=logits_of,
    distance=class_distance,
    targets=_class_probabilities,
    sample=_sample_class,
    loss=lambda outputs, batch: divergence(outputs.logits, batch.targets),
)
TOKENS = Distillation(
    outputs=logits_of,
    distance=token_distance,
    targets=_sample_tokens,
    sample=lambda targets, _generators: targets,
    loss=PositionLoss(_token_likelihood, lambda batch: int(batch.inputs["input_ids"].shape[1]) - 1),
)


def half_square(
    values: Float[Tensor, "*rows hidden"], expected: Float[Tensor, "*rows hidden"]
) -> Float[Tensor, "*rows"]:
    """Return half the squared distance: of embeddings of unit length it is 1 less their cosine."""
    half: Tensor = (values - expected).square().sum(-1) / 2
    return half
