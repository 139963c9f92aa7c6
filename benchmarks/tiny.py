"""Tiny random models that ``--quick`` runs on, with MiniLM's tokenizer; made once and kept beside the demo's models."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from benchmarks.real_models.convert import converted
from headprune.demo import locate_model

_SIZES: dict[str, Any] = {
    "vocab_size": 30_522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.4,  # with the usual 0.02, heads hardly matter
}


def tiny_bert(*, classes: int = 0) -> Path:
    """Return the directory of a BERT of three layers of four heads: an encoder, or a classifier."""
    kind = BertForSequenceClassification if classes else BertModel
    settings = {**_SIZES, "num_labels": classes} if classes else _SIZES
    return _written(kind, BertConfig(**settings))


def tiny_llama() -> Path:
    """Return the directory of a Llama of three layers of four heads, two of which share keys and values."""
    return _written(LlamaForCausalLM, LlamaConfig(**_SIZES, num_key_value_heads=2))


def _written(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Path:
    digest = hashlib.sha256(config.to_json_string().encode()).hexdigest()[:12]
    return converted(f"tiny-{kind.__name__}-{digest}", partial(_write, kind, config))


def _write(kind: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> None:
    torch.manual_seed(0)
    kind._from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate_model("demo:minilm")).save_pretrained(folder)
