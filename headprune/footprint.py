"""What a model takes while it runs, measured: time, and room for keys and values."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from statistics import median
from typing import NamedTuple, TypeVar

import torch
from scipy.stats import binom
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.trace import CACHE_NAMES, takes_cache
from headprune.artefact import Latency
from headprune.batch import Batch, forward
from headprune.errors import ConfigError
from headprune.passes import attempt
from headprune.placement import input_device, staged

_FEWEST_REPEATS = 3
_MOST_REPEATS = 30
_ENOUGH_REPEATS = 6
"""The fewest whose range is a 95 % interval of their median."""
_BATCHES = (1, 32)
_SECONDS = 1.0
_MOST_SECONDS = 10.0
"""For a size that nobody asked for, of each model."""
_LEAST_SHARE = 0.85
"""Of the time of a forward, what its process must have had of a core."""
_WIDEST = 0.25
"""Of the median, how wide its interval may be."""


class Size(NamedTuple):
    """Of which batch so many rows are run, and whether somebody asked for that."""

    name: str
    batch: Batch
    rows: int
    is_asked: bool


Times = TypeVar("Times")
Track = Callable[[Sequence[Size], str], Iterable[Size]]


def sizes(
    batches: Sequence[Batch], *, lengths: Sequence[int] = (), rows: Sequence[int] = ()
) -> list[Size]:
    """Return what is timed: so many rows of real data of median length, or of its tokens over and over to a given length."""
    batch = median_batch(batches)
    whole = {length: of_length(batch, length) if length else batch for length in lengths or (0,)}
    counts = [(own, count) for own in whole.values() for count in rows or _BATCHES]
    names = size_names(lengths=tuple(whole), rows=rows)
    asked = bool(rows or lengths)
    return [Size(name, own, count, asked) for name, (own, count) in zip(names, counts, strict=True)]


def size_names(*, lengths: Sequence[int] = (), rows: Sequence[int] = ()) -> list[str]:
    """Return what the sizes are called that :func:`sizes` would return."""
    return [
        f"batch_{count}_length_{length}" if length else f"batch_{count}"
        for length in lengths or (0,)
        for count in rows or _BATCHES
    ]


def latency_ms(
    models: Sequence[PreTrainedModel],
    *,
    sizes: Sequence[Size],
    seconds: float = _SECONDS,
    track: Track = lambda sizes, _description: sizes,
    notify: Callable[[str], None] = lambda _text: None,
) -> list[dict[str, Latency]]:
    """Return for each model how long a forward takes at each size.

    The models take turns, so that whatever else the machine does meets them alike; after a warm-up each size is repeated for
    about ``seconds`` a model, 3 to 30 times. A size that memory doesn't hold is left out, and so is one that nobody asked for
    and that would take more than about 10 seconds a model, judged by the size before it.
    """
    results: list[dict[str, Latency]] = [{} for _ in models]
    seconds_a_row = 0.0
    for size in track(sizes, "timing"):
        name = size.name.replace("_", " ")
        expected = size.rows * seconds_a_row * (1 + _FEWEST_REPEATS)
        is_slow = input_device(models[0]).type == "cpu" and expected > _MOST_SECONDS
        if is_slow and not size.is_asked:
            total = f"{expected * len(models):.0f} s"
            notify(
                f"{name} isn't timed: that could take {total}; `latency_batch={size.rows}` asks for it"
            )
            continue
        measure = partial(times_in_turns, models, batch=size.batch, rows=size.rows, seconds=seconds)
        measured, _reason = attempt(partial(with_busy, measure, models[0]))
        if measured is None:
            notify(f"{name} isn't timed: memory doesn't hold it")
            continue
        times, busy = measured
        seconds_a_row = median(times[0]) / size.rows
        for result, own in zip(results, times, strict=True):
            result[size.name] = _latency(own, size.batch, busy=busy)
        doubts = "; ".join(dict.fromkeys(r[size.name].busy for r in results if r[size.name].busy))
        if doubts:
            notify(f"careful: {name}: {doubts}: small differences can't be told")
    return results


def _latency(seconds: Sequence[float], batch: Batch, *, busy: str) -> Latency:
    """Return the median with the interval between the repeats that lie on both sides of it with 95 % certainty."""
    taken = sorted(value * 1000 for value in seconds)
    outside = int(binom.ppf(0.025, len(taken), 0.5))
    low, high = taken[max(0, outside - 1)], taken[min(len(taken) - 1, len(taken) - outside)]
    middle = median(taken)
    if not busy and (high - low) > _WIDEST * middle:
        busy = f"repeats went from {taken[0]:.3g} to {taken[-1]:.3g} ms"
    return Latency(
        ms=round(middle, 4),
        interval=(round(low, 4), round(high, 4)),
        repeats=len(taken),
        tokens=batch.num_tokens // batch.num_rows,
        busy=busy,
    )


def with_busy(measure: Callable[[], Times], model: PreTrainedModel) -> tuple[Times, str]:
    """Measure, and return with the times what kept the machine from its work meanwhile, if anything did."""
    wall, own = time.perf_counter(), time.process_time()
    times = measure()
    if input_device(model).type != "cpu":
        return times, ""
    share = (time.process_time() - own) / (time.perf_counter() - wall)
    if share < _LEAST_SHARE:
        return times, f"the machine is too busy: this process had {share:.0%} of a core"
    load, cores = load_average(), os.cpu_count() or 1
    if load > cores + 0.5:
        return times, f"the machine is too busy: load average {load:.1f} on {cores} cores"
    return times, ""


def load_average() -> float:
    """Return how many processes wanted to run in the last minute; 0 where the system doesn't tell."""
    with suppress(AttributeError, OSError):  # some systems have no such function
        return os.getloadavg()[0]
    return 0.0


def median_batch(batches: Sequence[Batch]) -> Batch:
    """Return the batch whose rows are of median length."""
    return sorted(batches, key=lambda b: b.num_tokens // b.num_rows)[len(batches) // 2]


def of_length(batch: Batch, length: int) -> Batch:
    """Return a batch of one row of so many tokens: those of the longest row, its first and last in their places.

    Raises:
        ConfigError: The model doesn't read tokens.
    """
    read = [name for name in ("input_ids", "decoder_input_ids") if name in batch.inputs]
    if not read:
        raise ConfigError(
            "the model reads no tokens, so it can't be given more or fewer",
            where=f"`latency_length={length}`",
            hint="leave `latency_length` out",
        )
    width = batch.inputs[read[0]].shape[1]
    mask = batch.inputs.get("attention_mask")
    row = 0 if mask is None else int(mask.reshape(mask.shape[0], -1).sum(1).argmax())
    chosen = torch.arange(length) % max(1, width - 2) + min(1, width - 1)
    chosen[0], chosen[-1] = 0, width - 1
    inputs = {
        name: value[row : row + 1, chosen.clamp(max=width - 1)]
        if value.dim() >= 2 and value.shape[1] == width
        else value[row : row + 1]
        for name, value in batch.inputs.items()
    }
    return replace(
        batch,
        inputs=inputs,
        targets=batch.targets[:1],
        example_of_row=batch.example_of_row[:1] * 0,
        indices=batch.indices[:1],
    )


def fastest_ms(
    models: Sequence[PreTrainedModel], *, batch: Batch, rows: int, seconds: float
) -> list[float]:
    """Return each model's fastest forward of so many rows of ``batch`` in milliseconds: other work only ever adds time."""
    times = times_in_turns(models, batch=batch, rows=rows, seconds=seconds)
    return [min(taken) * 1000 for taken in times]


@torch.no_grad()
def times_in_turns(
    models: Sequence[PreTrainedModel], *, batch: Batch, rows: int, seconds: float
) -> list[list[float]]:
    """Return how many seconds each forward of each model took, see :func:`latency_ms`.

    Turns in which a CPU was taken from this process are left out where enough others are there.
    """
    repeated = torch.arange(rows) % batch.num_rows
    inputs = [
        {name: staged(value[repeated], input_device(model)) for name, value in batch.inputs.items()}
        for model in models
    ]
    for model, own in zip(models, inputs, strict=True):
        forward(model, own)
    turns: list[list[float]] = []
    undisturbed: list[list[float]] = []
    while _has_another_turn(len(turns), sum(map(sum, turns), 0.0), seconds * len(models)):
        began = time.process_time()
        turns.append([_seconds(model, own) for model, own in zip(models, inputs, strict=True)])
        if time.process_time() - began >= _LEAST_SHARE * sum(turns[-1]):
            undisturbed.append(turns[-1])
    enough = len(undisturbed) >= _FEWEST_REPEATS and input_device(models[0]).type == "cpu"
    return [list(taken) for taken in zip(*(undisturbed if enough else turns), strict=True)]


def _has_another_turn(repeats: int, spent: float, seconds: float) -> bool:
    """Whether there is another turn: three, as long as that takes seconds; then for so long, or longer for an interval."""
    if repeats < _FEWEST_REPEATS:
        return repeats == 0 or spent < _MOST_SECONDS
    bound = 3 * seconds if repeats < _ENOUGH_REPEATS else seconds
    return repeats < _MOST_REPEATS and spent < bound


def _seconds(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> float:
    """Return how long a forward takes: on a CUDA device by its own clock, between two events."""
    device = input_device(model)
    if device.type == "cuda":
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            forward(model, inputs)
            end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
    start = time.perf_counter()
    forward(model, inputs)
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def kv_cache_bytes_per_token(model: PreTrainedModel, *, batch: Batch) -> int | None:
    """Return how many bytes of keys and values generation keeps for each further token of a text, as they lie in memory.

    Counted in what the model's own cache holds after all positions of a row and after half of them, so that what doesn't grow
    (states, the keys of an encoder) is none of it.

    Returns:
        None for models that don't generate from such a cache.
    """
    row = {name: value[:1].to(input_device(model)) for name, value in batch.inputs.items()}
    read = "decoder_input_ids" if "decoder_input_ids" in row else "input_ids"
    length = row[read].shape[1] if read in row else 0
    if length < 2 or not (model.can_generate() and takes_cache(model)):
        return None
    sizes = []
    for stop in (length // 2, length):
        start = {
            name: value[:, :stop]
            if name in (read, read.replace("input_ids", "attention_mask"))
            else value
            for name, value in row.items()
        }
        outputs = model(**start, use_cache=True)
        caches = (getattr(outputs, name, None) for name in CACHE_NAMES)
        cache = next((cache for cache in caches if cache is not None), None)
        layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
        found = (
            getattr(layer, name, None) for layer in layers or () for name in ("keys", "values")
        )
        held = [part.nbytes for part in found if isinstance(part, Tensor)]
        if not held:  # nothing, or states alone
            return None
        sizes.append(sum(held))
    return (sizes[1] - sizes[0]) // (length - length // 2)
