"""Some examples, ready for the model; and what a loss is."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headprune.anatomy.trace import takes_cache
from headprune.errors import DataError
from headprune.placement import staged

_NO_TOKEN = -1


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

    def __getitem__(self, name: str) -> Tensor:
        """Return an input, or the targets as ``labels``: a batch reads like the mapping that it was made from."""
        return self.targets if name == "labels" else self.inputs[name]

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

    def take(self, count: int) -> "Batch":
        """Return the first ``count`` examples; the whole batch where its inputs don't come row by row.

        Inputs that images were packed into, say, don't tell whose they are.
        """
        rows = torch.nonzero(self.example_of_row < count).flatten()
        if any(value.shape[:1] != (self.num_rows,) for value in self.inputs.values()):
            return self
        return Batch(
            {name: value[rows] for name, value in self.inputs.items()},
            self.targets[:count],
            self.example_of_row[rows],
            torch.arange(min(count, self.num_examples)),
        )

    def halves(self) -> tuple["Batch", ...]:
        """Return two batches that hold half of the examples each; nothing where there is one, or inputs don't come row by row."""
        if self.num_examples < 2 or any(
            value.shape[:1] != (self.num_rows,) for value in self.inputs.values()
        ):
            return ()
        middle = self.num_examples // 2
        first = self.example_of_row < middle
        return tuple(
            Batch(
                {name: value[rows.to(value.device)] for name, value in self.inputs.items()},
                self.targets[examples],
                self.example_of_row[rows] - (examples.start or 0),
                self.indices[examples],
            )
            for rows, examples in ((first, slice(0, middle)), (~first, slice(middle, None)))
        )

    def start(self, length: int) -> "Batch":
        """Return the first ``length`` positions of every row; the whole batch where there is padding among them.

        So it is where inputs have other dimensions than rows and positions, too.
        """
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
    found: list[Batch] = []
    start = 0
    for batch in batches:
        if isinstance(batch, Batch):
            found.append(batch)
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
        found.append(Batch(inputs, batch.get("labels", indices), torch.arange(rows), indices))
    if not found:
        raise DataError("there is no data", where="batches", hint="give at least one batch")
    indices = torch.cat([batch.indices for batch in found])
    if not torch.equal(indices.sort().values, torch.arange(len(indices))):
        raise DataError(
            "the examples' indices don't count from 0, each once",
            where="batches",
            hint="give either Batch values with such indices, or plain mappings, not both",
        )
    return tuple(found)


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
    options = {"use_cache": False} if takes_cache(model) else {}
    if not asks_for_padding(model, inputs):
        return model(**inputs, **options)
    config: Any = model.config
    config = config.get_text_config()
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
