"""What is measured: a BERT-base in three batch sizes, a Llama-like model of a billion parameters, a ViT-B. Random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

import headprune as hp
from benchmarks.speed.cases import Case
from benchmarks.speed.flops import minimal_flops, shape_of
from headprune.batch import Batch, PositionLoss
from headprune.tasks.task import get_task

_FIRST_WORD = 1000  # BERT's ids before that are special tokens


@dataclass(frozen=True)
class Size:
    """How large a case is.

    Args:
        layers: Blocks.
        heads: Query heads of a block.
        key_value_heads: Key/value heads of a block.
        width: Width of the hidden states.
        inner: Width of the feed-forward part.
        rows: Rows of a batch.
        length: Tokens of a row; of an image, the patches and the class token.
        batches: How many batches there are.
    """

    layers: int
    heads: int
    key_value_heads: int
    width: int
    inner: int
    rows: int
    length: int
    batches: int = 2


FULL = {
    "bert-base 16 x 128": Size(12, 12, 12, 768, 3072, 16, 128),
    "bert-base 64 x 128": Size(12, 12, 12, 768, 3072, 64, 128),
    "bert-base 256 x 128": Size(12, 12, 12, 768, 3072, 256, 128),
    "llama-1b 8 x 512": Size(16, 32, 8, 2048, 8192, 8, 512, batches=1),
    "vit-b 64 x 197": Size(12, 12, 12, 768, 3072, 64, 197),
}
QUICK = {
    "bert 4 x 16": Size(2, 4, 4, 32, 64, 4, 16),
    "llama 2 x 16": Size(2, 4, 2, 32, 64, 2, 16, batches=1),
    "vit 2 x 17": Size(2, 4, 4, 32, 64, 2, 17),
}


def open_case(name: str, size: Size, *, device: torch.device, dtype: torch.dtype) -> Case:
    """Make a model with random weights and random inputs, on the device."""
    torch.manual_seed(0)
    config, kind, inputs, needed = _BUILDERS[name.partition(" ")[0].partition("-")[0]](size)
    with device:
        model: PreTrainedModel = kind._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    causal = kind is LlamaForCausalLM
    batches = tuple(
        _batch(inputs(), index, causal=causal, dtype=dtype).to(device)
        for index in range(size.batches)
    )
    task = get_task("causal-lm" if causal else "classification")
    return Case(
        name=name,
        about=f"{size.layers} x {size.heads} heads, {size.rows} x {size.length}, {dtype}",
        task=task,
        model=model,
        anatomy=hp.inspect(model),
        batches=batches,
        reference_batches=batches[:1],
        predict=lambda outputs, _batch: outputs.logits,
        needed_positions=needed,
    )


def fewest_flops(case: Case, size: Size) -> float:
    """Return the least operations of the losses with all heads and without each; see :mod:`benchmarks.speed.flops`."""
    shape = shape_of(case.model, predicts_words=isinstance(case.task.loss, PositionLoss))
    rows = [(size.rows, size.length)] * size.batches
    return minimal_flops(shape, rows, needed_positions=case.needed_positions)


Built = tuple[PreTrainedConfig, type[PreTrainedModel], Callable[[], dict[str, Tensor]], int | None]


def _bert(size: Size) -> Built:
    config = BertConfig(**_shared(size))
    return config, BertForSequenceClassification, lambda: _words(size, config.vocab_size), 1


def _llama(size: Size) -> Built:
    config = LlamaConfig(
        vocab_size=32_000,
        num_key_value_heads=size.key_value_heads,
        pad_token_id=None,
        **_shared(size),
    )
    return config, LlamaForCausalLM, lambda: _words(size, config.vocab_size), None


def _vit(size: Size) -> Built:
    side = round((size.length - 1) ** 0.5)
    config = ViTConfig(image_size=16 * side, patch_size=16, **_shared(size))

    def pixels() -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(size.rows, 3, 16 * side, 16 * side)}

    return config, ViTForImageClassification, pixels, 1


_BUILDERS = {"bert": _bert, "llama": _llama, "vit": _vit}


def _shared(size: Size) -> dict[str, Any]:
    return {
        "num_labels": 2,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "hidden_size": size.width,
        "intermediate_size": size.inner,
    }


def _words(size: Size, words: int) -> dict[str, Tensor]:
    ids = torch.randint(_FIRST_WORD, words, (size.rows, size.length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _batch(inputs: dict[str, Tensor], index: int, *, causal: bool, dtype: torch.dtype) -> Batch:
    cast = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    first = next(iter(cast.values()))
    rows = first.shape[0]
    targets = torch.full((rows,), first.shape[1] - 1) if causal else torch.randint(0, 2, (rows,))
    return Batch(cast, targets, torch.arange(rows), torch.arange(index * rows, (index + 1) * rows))
