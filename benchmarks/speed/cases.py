"""The three subjects: a random BERT-base, all-MiniLM-L6-v2 on STS-B, SmolLM2-135M on English text."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import headprune as hp
from benchmarks.speed.settings import Sizes
from benchmarks.tiny import tiny_bert, tiny_llama
from headprune.anatomy.sites import Anatomy
from headprune.batch import Batch
from headprune.config import Settings
from headprune.passes import Item
from headprune.placement import choose_device
from headprune.tasks.columns import choose_columns
from headprune.tasks.rows import Example, draw, read_table
from headprune.tasks.task import Task, get_task
from headprune.workflows.session import Session, open_session

_ROWS_OF_REFERENCE = 32
_FIRST_WORD = 1000  # BERT's ids before that are special tokens


@dataclass(frozen=True, eq=False)
class Case:
    """One subject, ready to be measured.

    Args:
        name: Its name.
        about: What it is, in a line.
        task: What gives its loss and its predictions.
        model: The model, in eval mode, on its device.
        anatomy: Its anatomy.
        batches: Its data, padded dynamically, on the device: the same for every method but the reference.
        reference_batches: The first rows of it, 32 rows a batch, padded as the reference pads.
        predict: What the reference fetches from its second forward.
        needed_positions: How many positions of the last block's output the loss reads (None: all).
    """

    name: str
    about: str
    task: Task
    model: PreTrainedModel
    anatomy: Anatomy
    batches: tuple[Batch, ...]
    reference_batches: tuple[Batch, ...]
    predict: Callable[[Any, Batch], Tensor]
    needed_positions: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.batches[0].example_of_row.device

    @property
    def num_heads(self) -> int:
        """How many heads there are."""
        return len(self.anatomy.heads)

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return sum(batch.num_examples for batch in self.batches)

    @property
    def num_tokens(self) -> int:
        """How many positions the model sees, padding included."""
        return sum(batch.num_tokens for batch in self.batches)


class Silent:
    """Says nothing."""

    def notify(self, text: str) -> None:
        """Drop the text."""

    def track(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        """Return the items."""
        del description
        return items


def open_case(name: str, sizes: Sizes, device: str) -> Case:
    """Make a subject ready."""
    disable_progress_bar()
    return {"bert-base": _bert, "minilm": _minilm, "smollm2": _smollm2}[name](sizes, device)


def _bert(sizes: Sizes, device: str) -> Case:
    layers, heads, width, inner = sizes.bert
    settings: dict[str, Any] = {
        "num_labels": 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": inner,
        "attn_implementation": "sdpa",
    }
    config = BertConfig(**settings)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    model.to(choose_device(device))
    rows, length = sizes.rows["bert-base"], sizes.bert_length
    data = _random_batch(rows, length, words=config.vocab_size)
    return _case(
        "bert-base",
        f"random BERT {layers} x {heads}, {rows} rows of {length} random tokens",
        get_task("classification"),
        model,
        batches=_rows_at_a_time(data, sizes.bert_batch),
        few=_rows_at_a_time(data.take(sizes.reference_rows), _ROWS_OF_REFERENCE),
        padding=sizes.padding,
        predict=lambda outputs, _batch: outputs.logits,
        needed_positions=1,
    )


def _random_batch(rows: int, length: int, *, words: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_FIRST_WORD, words, (rows, length), generator=generator)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs, labels, torch.arange(rows), torch.arange(rows))


def _rows_at_a_time(batch: Batch, count: int) -> tuple[Batch, ...]:
    return tuple(
        Batch(
            {name: value[indices] for name, value in batch.inputs.items()},
            batch.targets[indices],
            torch.arange(len(indices)),
            indices,
        )
        for indices in torch.arange(batch.num_rows).split(count)
    )


def _minilm(sizes: Sizes, device: str) -> Case:
    settings = Settings.of(
        model=str(tiny_bert()) if sizes.tiny else "demo:minilm",
        task="similarity",
        data="demo:stsb",
        split="train",
        device=device,
    )
    subject = open_session(settings, progress=Silent())
    pairs = draw(_examples(subject), sizes.rows["minilm"], seed=0)
    return _case(
        "minilm",
        f"{_called('all-MiniLM-L6-v2', sizes)}, {len(pairs)} pairs of STS-B",
        subject.task,
        subject.model,
        batches=subject.batches(pairs),
        # Two rows a pair.
        few=_few(subject, pairs[: sizes.reference_rows], _ROWS_OF_REFERENCE // 2),
        padding=sizes.padding,
        predict=lambda outputs, batch: subject.task.predict(outputs, batch)[0],
    )


def _smollm2(sizes: Sizes, device: str) -> Case:
    settings = Settings.of(
        model=str(tiny_llama()) if sizes.tiny else "demo:smollm2",
        task="causal-lm",
        data="demo:stsb",
        split="train",
        text=("sentence1",),
        max_length=sizes.window,
        dtype="float32",
        device=device,
    )
    subject = open_session(settings, progress=Silent())
    full = [example for example in _examples(subject) if len(example.tokens) == sizes.window]
    windows = draw(full, sizes.rows["smollm2"], seed=0)
    return _case(
        "smollm2",
        f"{_called('SmolLM2-135M', sizes)}, {len(windows)} windows of {sizes.window} tokens of STS-B sentences",
        subject.task,
        subject.model,
        batches=subject.batches(windows),
        few=_few(subject, windows[: sizes.reference_rows], _ROWS_OF_REFERENCE),
        padding=sizes.padding,
        predict=lambda outputs, _batch: outputs.logits.argmax(-1),
    )


def _called(name: str, sizes: Sizes) -> str:
    return f"a tiny stand-in for {name}" if sizes.tiny else name


def _examples(subject: Session) -> tuple[Example, ...]:
    data, task = subject.settings.data, subject.task
    table = read_table(str(data.data), split=data.split)
    columns = choose_columns(
        table,
        texts=data.text,
        num_texts=task.row.num_texts,
        needs_label=bool(task.row.label),
    )
    return task.to_examples(table, columns, subject.input_format())


def _few(subject: Session, examples: Sequence[Example], batch_size: int) -> tuple[Batch, ...]:
    return subject.batches(examples, batch_size=batch_size)


def _case(
    name: str,
    about: str,
    task: Task,
    model: PreTrainedModel,
    *,
    batches: Sequence[Batch],
    few: Sequence[Batch],
    padding: int,
    predict: Callable[[Any, Batch], Tensor],
    needed_positions: int | None = None,
) -> Case:
    device = next(model.parameters()).device
    word = model.config.pad_token_id or 0
    return Case(
        name=name,
        about=about,
        task=task,
        model=model,
        anatomy=hp.inspect(model),
        batches=tuple(batch.to(device) for batch in batches),
        reference_batches=tuple(_padded(batch, padding, word=word).to(device) for batch in few),
        predict=predict,
        needed_positions=needed_positions,
    )


def _padded(batch: Batch, length: int, *, word: int) -> Batch:
    """Return the batch with rows of ``length`` tokens, padded on the right (longer ones stay as they are)."""
    inputs = {
        name: pad(
            value,
            (0, max(0, length - value.shape[1])),
            value=word if name == "input_ids" else 0,
        )
        for name, value in batch.inputs.items()
    }
    return replace(batch, inputs=inputs)
