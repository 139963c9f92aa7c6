"""The ways to get the losses without each head, and what else is timed beside them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed.cases import Case
from benchmarks.speed.clock import timed, wait
from headprune.batch import Batch, forward, per_example
from headprune.masking import gated
from headprune.passes import SILENT, RunContext
from headprune.replay.losses import losses
from headprune.scoring.gradients import gradient
from headprune.scoring.request import ScoreRequest


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a method.

    Args:
        seconds: What all heads and all rows take, extrapolated where some weren't run.
        once: Seconds of it that are spent once, however many rows there are.
        losses: Losses with all heads (row 0) and without each of the heads that were run, in the data's order.
    """

    seconds: float
    once: float
    losses: Tensor


@torch.no_grad()
def one_forward(case: Case) -> float:
    """Return the seconds of one plain forward over all batches."""

    def run() -> None:
        for batch in case.batches:
            forward(case.model, batch.inputs)

    return timed(case.device, run)[0]


@torch.no_grad()
def naive(case: Case, columns: Sequence[int]) -> Run:
    """Run the whole model once for every head, on the batches that ours gets, and sum the differences."""
    base_seconds, base = timed(case.device, lambda: _pass(case, case.batches))

    def without_each() -> list[Tensor]:
        found = []
        scores = []
        for column in columns:
            with gated(case.model, case.anatomy, gates=_without(case, column)):
                found.append(_pass(case, case.batches))
            scores.append((found[-1] - base).sum())
        torch.stack(scores).cpu()
        return found

    seconds, found = timed(case.device, without_each)
    whole = base_seconds + seconds * case.num_heads / len(columns)
    return Run(whole, 0.0, _in_order(case.batches, torch.stack([base, *found])))


@torch.no_grad()
def reference(case: Case, columns: Sequence[int]) -> Run:
    """Do what Michel's script does for every head, and once for none.

    Every row is padded to the same length, batches have 32 rows, and each batch runs twice: once for the loss, once for the
    predictions, both moved to numpy. That script starts a process for every head, which loads the model and reads the data
    anew; nothing of that is counted here, so this flatters it.
    """
    rows = case.reference_batches

    def each() -> list[Tensor]:
        found = [_double_pass(case, rows)]
        for column in columns:
            with gated(case.model, case.anatomy, gates=_without(case, column)):
                found.append(_double_pass(case, rows))
        return found

    seconds, found = timed(case.device, each)
    share = sum(batch.num_examples for batch in rows) / case.num_examples
    whole = seconds / len(found) * (case.num_heads + 1) / share
    return Run(whole, 0.0, _in_order(rows, torch.stack(found)))


def ours(case: Case) -> Run:
    """Run headprune's replay with one mask for every head, and one for none."""
    heads = case.num_heads
    return ours_with(case, torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)]))


def ours_with(case: Case, masks: Tensor) -> Run:
    """Run headprune's replay with these masks."""
    started: list[float] = []

    def note(batches: Sequence[Batch], _name: str) -> Sequence[Batch]:
        """Note when the batches begin: what was before is done once."""
        wait(case.device)
        started.append(time.perf_counter())
        return batches

    wait(case.device)
    start = time.perf_counter()
    found = replay(case, case.batches, masks, context=RunContext(track=note))
    wait(case.device)
    return Run(time.perf_counter() - start, started[0] - start, found)


def replay(
    case: Case, batches: Sequence[Batch], masks: Tensor, *, context: RunContext = SILENT
) -> Tensor:
    """Return the losses of every example of ``batches`` under every mask."""
    return losses(
        case.model, case.anatomy, batches=batches, loss=case.task.loss, masks=masks, context=context
    )


def gradient_seconds(case: Case) -> float:
    """Return the seconds of gradient scores over all batches."""

    def run() -> None:
        gradient(ScoreRequest(case.model, case.anatomy, case.batches, case.task.loss))

    return timed(case.device, run)[0]


def warm_up(case: Case, columns: Sequence[int]) -> None:
    """Let every method run a little: kernels are chosen, memory is taken, pages are read."""
    first = (whole(case.batches[0]),)
    few = torch.eye(case.num_heads)[list(columns)]
    with torch.no_grad():
        forward(case.model, first[0].inputs)
        with gated(case.model, case.anatomy, gates=_without(case, columns[0])):
            _pass(case, first)
            _double_pass(case, case.reference_batches[:1])
    replay(case, first, 1 - few)
    gradient(ScoreRequest(case.model, case.anatomy, first, case.task.loss))


def whole(batch: Batch) -> Batch:
    """Return the batch as data of its own: its examples' places count from 0."""
    return batch.take(batch.num_examples)


def _without(case: Case, column: int) -> Tensor:
    gates = torch.ones(case.num_heads, device=case.device)
    gates[column] = 0
    return gates


def _pass(case: Case, batches: Sequence[Batch]) -> Tensor:
    return torch.cat(
        [
            per_example(case.task.loss, forward(case.model, batch.inputs), batch).float()
            for batch in batches
        ]
    )


def _double_pass(case: Case, batches: Sequence[Batch]) -> Tensor:
    found = []
    for batch in batches:
        value = per_example(case.task.loss, forward(case.model, batch.inputs), batch)
        found.append(torch.from_numpy(value.float().cpu().numpy()))
        case.predict(forward(case.model, batch.inputs), batch).cpu().numpy()
    return torch.cat(found)


def _in_order(batches: Sequence[Batch], values: Tensor) -> Tensor:
    """Return losses [runs, examples] in the data's order, on the CPU."""
    indices = torch.cat([batch.indices for batch in batches])
    found = torch.empty(values.shape)
    found[:, indices] = values.cpu()
    return found
