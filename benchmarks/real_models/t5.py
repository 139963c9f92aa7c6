"""A T5 that writes titles of what a coding session did: encoder, decoder and cross-attention heads, 6 x 64 on a width of 512."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.real_models.convert import converted, write_model
from benchmarks.real_models.losses import IGNORED, token_cross_entropy
from benchmarks.real_models.onnx_weights import OnnxWeights
from benchmarks.real_models.packages import Package
from benchmarks.real_models.subject import Law, Sanity, Subject, says
from headprune.batch import as_batches

_MODEL = Package("traceforge-title-model", "0.2.0")
_INSIDE = "traceforge_title_model/data/span"
_CALIBRATION = (
    "title: read the failing test, edited parser.py to handle empty input, ran pytest until it passed",
    "summarize: The user reported a crash on start-up; the agent found a missing null check in config.c and added a test.",
    "summarize: The agent renamed the class Customer to Client in twelve files and updated the documentation.",
    "summarize: The user wanted faster queries; the agent added an index to the orders table and measured again.",
    "title: upgraded the web framework to version 5, fixed three deprecated calls, ran the linter",
    "summarize: The agent wrote a script that exports all invoices of a month as CSV and described it in the README.",
    "summarize: The build failed on Windows because of path separators; the agent used pathlib and the build passed.",
    "title: looked at the login form, moved the validation to the server, wrote two integration tests",
)
_HELD_OUT = {
    "dark mode": "summarize: The user asked to add a dark mode toggle to the settings page; the agent edited Settings.tsx "
    "and theme.css and ran the unit tests.",
    "time zones": "summarize: Dates were shown a day early to users in America; the agent stored them in UTC, converted them "
    "when they are shown, and added a regression test.",
    "memory leak": "title: profiled the worker, found that listeners were never removed, removed them on close, ran the "
    "load test again",
}
# What the original, run as ONNX, writes.
_KNOWN_TITLE = "Add dark mode toggle to settings page"


def subject() -> Subject:
    """Return the T5 titler. Calibration targets are the titles that the unpruned model writes."""
    directory = converted("t5-titler-0.2.0", _build)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    base = T5ForConditionalGeneration.from_pretrained(directory).eval()
    batches = [
        titled(_CALIBRATION[start : start + 4], base, tokenizer)
        for start in range(0, len(_CALIBRATION), 4)
    ]
    held_out = titled(tuple(_HELD_OUT.values()), base, tokenizer)
    (measured,) = as_batches([held_out])

    def numbers(model: PreTrainedModel) -> dict[str, float]:
        with torch.no_grad():
            losses = token_cross_entropy(model(**measured.inputs), measured)
        return {"loss of base's titles": losses.mean().item()}

    def texts(model: PreTrainedModel) -> dict[str, str]:
        return {
            name: _decoded(_title(model, text, tokenizer), tokenizer)
            for name, text in _HELD_OUT.items()
        }

    return Subject(
        directory=directory,
        auto_class="AutoModelForSeq2SeqLM",
        heads={"encoder": 48, "decoder": 48, "cross": 48},
        batches=batches,
        loss=token_cross_entropy,
        inputs=measured.inputs,
        numbers=numbers,
        texts=texts,
        base=_base,
        keeps=(0.9, 0.7),
        tokenizer=tokenizer,
    )


def _base(sanity: Sanity) -> list[Law]:
    return [says("the title is that of ONNX", sanity.texts["dark mode"], _KNOWN_TITLE)]


def _title(model: Any, text: str, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the tokens of the greedy title, from the start token on, with the key/value cache that generation uses."""
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    ids: Tensor = model.generate(**inputs, max_new_tokens=24, do_sample=False, num_beams=1)[0]
    return ids


def _decoded(ids: Tensor, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def titled(
    texts: Sequence[str], base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Tensor]:
    """Return a batch for teacher forcing with the titles that ``base`` writes of the texts."""
    titles = [_title(base, text, tokenizer) for text in texts]
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
    return {
        **inputs,
        "decoder_input_ids": pad_sequence([ids[:-1] for ids in titles], batch_first=True),
        "labels": pad_sequence(
            [ids[1:] for ids in titles], batch_first=True, padding_value=IGNORED
        ),
    }


def _build(folder: Path) -> None:
    encoder = _MODEL.file(
        f"{_INSIDE}/encoder.onnx",
        sha256="b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
    )
    decoder = _MODEL.file(
        f"{_INSIDE}/decoder.onnx",
        sha256="76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
    )
    tokens = _MODEL.file(
        f"{_INSIDE}/tokenizer.json",
        sha256="3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
    )
    settings: dict[str, Any] = {"tie_word_embeddings": False, "decoder_start_token_id": 0}
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        **settings,
        pad_token_id=0,
        eos_token_id=1,
    )
    weights = _weights(OnnxWeights(encoder), OnnxWeights(decoder))
    write_model(folder, T5ForConditionalGeneration, config=config, weights=weights)
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokens), eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def _weights(encoder: OnnxWeights, decoder: OnnxWeights) -> dict[str, Tensor]:
    return {
        "shared.weight": torch.tensor(decoder.dequantized("m.shared.weight")),
        **_stack(encoder, graph="enc", ours="encoder"),
        **_stack(decoder, graph="m.decoder", ours="decoder"),
    }


def _stack(source: OnnxWeights, *, graph: str, ours: str) -> dict[str, Tensor]:
    """Return the weights of one stack; names of the graph's nodes are paths of modules."""
    weights: dict[str, Tensor] = {}
    for node, value in source.quantized_matmuls():
        path = node.rpartition("/MatMul")[0].strip("/").replace("/", ".")
        name = "lm_head" if path.startswith("m.lm_head") else path.replace(graph, ours, 1)
        weights[f"{name}.weight"] = torch.tensor(np.ascontiguousarray(value.T))
    for name, value in source.constants.items():
        if name.startswith(f"{graph}.") and name.endswith("layer_norm.weight"):
            weights[name.replace(graph, ours, 1)] = torch.tensor(value)
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    weights[f"{ours}.{bias}"] = torch.tensor(source.dequantized(f"{graph}.{bias}"))
    return weights
