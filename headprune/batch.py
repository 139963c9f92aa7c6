"""Some examples, ready for the model; and what a loss is."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.trace import takes_cache
from headprune.errors import DataError, with_type
from headprune.placement import input_device, staged

_NO_TOKEN = -1
_DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples, ready for the model.

    Args:
        inputs: What the model's forward takes; dimension 0 of every tensor is the rows.
        targets: What the loss compares with, one per example.
        example_of_row: Which example of this batch each row belongs to (a pair of sentences has two rows).
        indices: The examples' places in the data, so that results come back in its order.
    """

    inputs: Mapping[str, Tensor]
    targets: Tensor
    example_of_row: Int[Tensor, " rows"]
    indices: Int[Tensor, " examples"]

    @property
    def num_examples(self) -> int:
        """How many examples the batch holds."""
        return int(self.indices.shape[0])

    @property
    def num_rows(self) -> int:
        """How many rows the model sees."""
        return int(self.example_of_row.shape[0])

    @property
    def num_tokens(self) -> int:
        """How many positions the model sees, padding included."""
        first = next(iter(self.inputs.values()))
        return int(first.shape[0] * (first.shape[1] if first.dim() > 1 else 1))

    def __getitem__(self, name: str) -> Tensor:
        """Read the batch like the mapping that was given: ``batch["labels"]`` are the targets."""
        return self.targets if name == "labels" else self.inputs[name]

    def take(self, count: int) -> "Batch":
        """Return the first ``count`` examples; the whole batch where its inputs don't come row by row, as of packed images."""
        if not self.comes_by_row:
            return self
        return replace(self._part(0, count), indices=torch.arange(min(count, self.num_examples)))

    def halves(self) -> tuple["Batch", ...]:
        """Return two batches that hold half of the examples each; nothing where there is one, or inputs don't come row by row."""
        if self.num_examples < 2 or not self.comes_by_row:
            return ()
        middle = self.num_examples // 2
        return self._part(0, middle), self._part(middle, self.num_examples)

    @property
    def comes_by_row(self) -> bool:
        """Whether dimension 0 of every input is the rows; not so of packed images. Else a batch can't be divided."""
        return all(value.shape[:1] == (self.num_rows,) for value in self.inputs.values())

    def _part(self, start: int, stop: int) -> "Batch":
        places = torch.arange(self.num_examples)
        return self.only((places >= start) & (places < stop))

    def only(self, wanted: Bool[Tensor, " examples"]) -> "Batch":
        """Return the examples that are ``wanted``; the whole batch where its inputs don't come row by row."""
        if not self.comes_by_row:
            return self
        rows = wanted.to(self.example_of_row.device)[self.example_of_row]
        places = (wanted.cumsum(0) - 1).to(self.example_of_row.device)
        return Batch(
            {name: value[rows.to(value.device)] for name, value in self.inputs.items()},
            self.targets[wanted.to(self.targets.device)],
            places[self.example_of_row[rows]],
            self.indices[wanted],
        )

    def start(self, length: int) -> "Batch":
        """Return the first ``length`` positions of every row; the whole batch where one is padding, or has other dimensions."""
        sizes = {value.shape[:2] for value in self.inputs.values()}
        real = self.inputs.get("attention_mask")
        if len(sizes) != 1 or (real is not None and not bool(real[:, :length].all())):
            return self
        return replace(
            self, inputs={name: value[:, :length] for name, value in self.inputs.items()}
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on ``device`` (the indices stay where they are)."""
        return replace(
            self,
            inputs={name: staged(value, device) for name, value in self.inputs.items()},
            targets=staged(self.targets, device),
            example_of_row=staged(self.example_of_row, device),
        )


Loss: TypeAlias = Callable[[Any, Batch], Tensor]
"""``loss(outputs, batch) -> [examples]``: the model's outputs to one number per example, smaller is better."""


@dataclass(frozen=True)
class PositionLoss:
    """A loss that is a sum over positions, so that the logits of a few positions at a time are enough.

    Args:
        part: ``part(logits, start, batch) -> [examples]``: what the positions from ``start`` on add, with their logits
            [rows, positions, vocabulary].
        stop: ``stop(batch)``: how many positions, from 0 on, it reads.
    """

    part: Callable[[Tensor, int, Batch], Tensor]
    stop: Callable[[Batch], int]

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the loss of every example from all logits at once."""
        return self.part(outputs.logits[:, : self.stop(batch)], 0, batch)


def as_batches(batches: Iterable[Batch | Mapping[str, Tensor]]) -> tuple[Batch, ...]:
    """Take plain mappings of tensors, as a DataLoader gives them, beside :class:`Batch` values.

    Of a mapping, ``labels`` becomes the targets (and is not given to the model); each row is one example.

    Raises:
        DataError: There is no batch, or one has no tensor.
    """
    converted: list[Batch] = []
    start = 0
    for batch in batches:
        if isinstance(batch, Batch):
            converted.append(batch)
            continue
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if not inputs:
            raise DataError(
                "a batch holds no inputs",
                where="batches",
                hint="give mappings of tensors, such as {'input_ids': ..., 'attention_mask': ..., 'labels': ...}",
            )
        rows = next(iter(inputs.values())).shape[0]
        indices = torch.arange(start, start + rows)
        start += rows
        converted.append(Batch(inputs, batch.get("labels", indices), torch.arange(rows), indices))
    if not converted:
        raise DataError("there is no data", where="batches", hint="give at least one batch")
    indices = torch.cat([batch.indices for batch in converted])
    if not torch.equal(indices.sort().values, torch.arange(len(indices))):
        raise DataError(
            "the examples' indices don't count from 0, each once",
            where="batches",
            hint="give either Batch values with such indices, or plain mappings, not both",
        )
    return tuple(converted)


def num_examples(batches: Iterable[Batch]) -> int:
    """Return how many examples batches hold together."""
    return sum(batch.num_examples for batch in batches)


def fingerprint_of_batches(batches: Iterable[Batch]) -> str:
    """Return a hash of everything that batches hold, and of how the examples are spread over them."""
    digest = hashlib.sha256()
    for batch in batches:
        tensors = {
            **batch.inputs,
            "": batch.targets,
            "rows": batch.example_of_row,
            "at": batch.indices,
        }
        for name, tensor in tensors.items():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def per_example(loss: Loss, outputs: Any, batch: Batch) -> Tensor:
    """Return the loss of every example, checked: a mean over the batch would make scores depend on its size.

    Raises:
        DataError: The loss isn't one number per example.
    """
    values = loss(outputs, batch)
    if tuple(values.shape) != (batch.num_examples,):
        raise DataError(
            f"the loss has shape {tuple(values.shape)}, and the batch has {batch.num_examples} examples",
            where="loss",
            hint="return one number per example, [examples]: reduction='none', no mean over the batch",
        )
    return values


def main_output(outputs: Any) -> Tensor:
    """Return the first tensor of a model's outputs: the logits, or the last hidden state."""
    first: Tensor = outputs[0]
    return first


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """Run the model on a batch's inputs, without filling a key/value cache."""
    plain: Any = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    options = {"use_cache": False} if takes_cache(plain) else {}
    if not asks_for_padding(plain, inputs):
        return model(**inputs, **options)
    config: Any = plain.config.get_text_config()
    config.pad_token_id = _NO_TOKEN
    try:
        return model(**inputs, **options)
    finally:
        config.pad_token_id = None


def asks_for_padding(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a classifier would refuse several rows, though none is padded, because its config names no pad token.

    It reads the last token that isn't padding. Where nothing is padded, an id that no token has says just that.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "num_labels") or not hasattr(config, "get_text_config"):
        return False
    if getattr(config.get_text_config(), "pad_token_id", None) is not None:
        return False
    real = inputs.get("attention_mask")
    several = any(value.dim() > 0 and value.shape[0] > 1 for value in inputs.values())
    return several and (real is None or bool(real.all()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block without dropout, in every module; they are as they were afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _DecoderReachedError(Exception):
    """Ends a forward where its decoder starts."""


def batches_for(
    model: PreTrainedModel, batches: Iterable[Batch | Mapping[str, Tensor]]
) -> tuple[Batch, ...]:
    """Return the batches of a model; see :func:`with_decoder_inputs` and :func:`as_batches`."""
    return as_batches(with_decoder_inputs(model, batches))


def with_decoder_inputs(
    model: PreTrainedModel, batches: Iterable[Batch | Mapping[str, Tensor]]
) -> Iterable[Batch | Mapping[str, Tensor]]:
    """Yield the batches; where labels are sequences for an encoder-decoder, with the decoder inputs that it makes of them.

    Labels that are no sequences (classes) leave the decoder what the model gives it without any.

    Raises:
        DataError: The model makes none.
    """
    takes_labels = bool(getattr(model.config, "is_encoder_decoder", False))
    for batch in batches:
        if isinstance(batch, Batch) or not takes_labels:
            yield batch
            continue
        labels = batch.get("labels")
        is_given = any(batch.get(name) is not None for name in _DECODER_INPUTS)
        is_whole = labels is None or labels.dim() < 2 or is_given
        yield batch if is_whole else {**batch, **_shifted(model, batch)}


def _shifted(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what reaches the decoder in the model's own forward with labels: tokens, and a mask where some are hidden."""
    decoder = model.get_decoder()
    reached: list[tuple[Any, Any]] = []

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        reached.append((tokens, kwargs.get("attention_mask")))
        raise _DecoderReachedError

    handle = decoder.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad(), suppress(_DecoderReachedError):
            model(**{name: value.to(input_device(model)) for name, value in batch.items()})
    except Exception as error:  # of the model, given what the user gave
        raise _refusal(model, f"{with_type(error)}") from error
    finally:
        handle.remove()
    tokens, mask = reached[0] if reached else (None, None)
    if not isinstance(tokens, Tensor):
        raise _refusal(model, "none reach its decoder")
    inputs = {"decoder_input_ids": tokens}
    if isinstance(mask, Tensor) and mask.shape == tokens.shape and not bool(mask.all()):
        inputs["decoder_attention_mask"] = mask
    return {name: value.to(batch["labels"].device) for name, value in inputs.items()}


def _refusal(model: PreTrainedModel, why: str) -> DataError:
    return DataError(
        f"{type(model).__name__} makes no decoder inputs of the labels ({why})",
        where="batches",
        hint="give decoder_input_ids beside the labels",
    )
