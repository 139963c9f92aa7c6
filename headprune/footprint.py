"""What a model takes while it runs, measured: time, and room for keys and values."""

import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.trace import takes_cache
from headprune.batch import Batch, forward
from headprune.memory import attempt
from headprune.placement import input_device, staged

_MOST_REPEATS = 30
_LATENCY_BATCHES = (1, 32)


@torch.no_grad()
def latency_ms(
    models: Sequence[PreTrainedModel], *, batches: Sequence[Batch], seconds: float = 1.0
) -> list[dict[str, float]]:
    """Return for each model the fastest forward in milliseconds, for 1 row and for 32 rows of real data of median length.

    The models take turns, so that whatever else the machine does meets them alike; after a warm-up each size is repeated for
    about ``seconds`` a model, at least 3 times and at most 30 times. The fastest, because other work only ever adds time.
    A size that memory doesn't hold is left out.
    """
    batch = median_batch(batches)
    found: list[dict[str, float]] = [{} for _ in models]
    for rows in _LATENCY_BATCHES:
        measure = partial(fastest_ms, models, batch=batch, rows=rows, seconds=seconds)
        fastest, _reason = attempt(measure)
        if fastest is None:
            break
        for result, milliseconds in zip(found, fastest, strict=True):
            result[f"batch_{rows}"] = round(milliseconds, 3)
    return found


def median_batch(batches: Sequence[Batch]) -> Batch:
    """Return the batch whose rows are of median length."""
    return sorted(batches, key=lambda b: b.num_tokens // b.num_rows)[len(batches) // 2]


@torch.no_grad()
def fastest_ms(
    models: Sequence[PreTrainedModel], *, batch: Batch, rows: int, seconds: float
) -> list[float]:
    """Return each model's fastest forward of so many rows of ``batch`` in milliseconds; see :func:`latency_ms`."""
    wanted = torch.arange(rows) % batch.num_rows
    inputs = [
        {name: staged(value[wanted], input_device(model)) for name, value in batch.inputs.items()}
        for model in models
    ]
    for model, own in zip(models, inputs, strict=True):
        forward(model, own)
    times: list[list[float]] = [[] for _ in models]
    while len(times[0]) < 3 or (
        len(times[0]) < _MOST_REPEATS and sum(map(sum, times)) < seconds * len(models)
    ):
        for model, own, taken in zip(models, inputs, times, strict=True):
            taken.append(_seconds(model, own))
    return [min(taken) * 1000 for taken in times]


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
        cache = getattr(model(**start, use_cache=True), "past_key_values", None)
        layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
        if layers is None:
            return None
        held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        sizes.append(sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor)))
    return (sizes[1] - sizes[0]) // (length - length // 2)
