"""The proof of a GGUF file: read it back, undo what was done to it, and compare with the model bit for bit.

It shares no code with the writer: names are turned back by a table of its own, and rows by index.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.artefact import Proof
from headprune.export.vocabulary import Vocabulary
from headprune.verify import nothing_wrong, proving

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@proving("file == model")
def file_equals_model(
    path: Path, model: PreTrainedModel, *, vocabulary: Vocabulary | None
) -> Proof:
    """Compare a file with the model and the tokenizer it was written from; ``measured`` counts the differences."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    differences = [*_tensors_that_differ(reader, model), *_facts_that_differ(reader, model)]
    if vocabulary is not None:
        differences += _words_that_differ(reader, vocabulary)
    numbers = sum(int(tensor.n_elements) for tensor in reader.tensors)
    fine = f"{len(reader.tensors)} tensors, {numbers:,} numbers, read back bit for bit"
    return nothing_wrong("file == model", differences, fine)


def _tensors_that_differ(reader: "GGUFReader", model: PreTrainedModel) -> Iterator[str]:
    left = dict(model.state_dict())
    head_dim = int(_value(reader, "attention.key_length"))
    for tensor in reader.tensors:
        parameter = _parameter(tensor.name)
        if tensor.name == "rope_freqs.weight":
            yield from _frequencies_that_differ(tensor, model, _value(reader, "rope.freq_base"))
            continue
        if parameter not in left:
            yield f"{tensor.name} is no part of the model"
            continue
        expected = left.pop(parameter).detach().cpu()
        read = _read(tensor)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            read = read[_places(read.shape[0], head_dim)]
        if not expected.numel():
            expected = expected.new_zeros([size or head_dim for size in expected.shape])
        if read.shape != expected.shape or not torch.equal(read, expected.to(read.dtype)):
            yield f"{tensor.name} is not {parameter}"
    yield from (f"{name} is not in the file" for name in left if not _may_be_absent(name, model))


def _parameter(name: str) -> str | None:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk" and len(parts) == 3 and parts[2] in _IN_LAYER:
        return f"model.layers.{parts[1]}.{_IN_LAYER[parts[2]]}.weight"
    return f"{_OUTSIDE[parts[0]]}.weight" if parts[0] in _OUTSIDE else None


def _read(tensor: "ReaderTensor") -> Tensor:
    read = torch.from_numpy(np.array(tensor.data))  # a copy: the file itself may not be written to
    return read.view(torch.bfloat16) if tensor.tensor_type.name == "BF16" else read


def _places(rows: int, head_dim: int) -> Tensor:
    """Return where the file has row 0, 1, 2, ... of the model's queries or keys."""
    within = torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])
    return torch.cat([within + start for start in range(0, rows, head_dim)])


def _may_be_absent(name: str, model: PreTrainedModel) -> bool:
    """Whether a file rightly lacks a parameter: a tied output, or a part of an attention that has no heads."""
    if name == "lm_head.weight":
        embedding = model.get_parameter("model.embed_tokens.weight")
        return torch.equal(model.get_parameter(name), embedding)
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    attends = part.startswith(("self_attn.", "input_layernorm."))
    return (
        attends
        and model.get_parameter(f"model.layers.{layer}.self_attn.o_proj.weight").numel() == 0
    )


def _frequencies_that_differ(
    tensor: "ReaderTensor", model: PreTrainedModel, base: float
) -> Iterator[str]:
    factors = _read(tensor).double()
    exponents = torch.arange(len(factors), dtype=torch.double) / len(factors)
    rotary: Any = model.get_submodule("model.rotary_emb")
    expected = rotary.inv_freq.detach().cpu().double()
    if not torch.allclose(base**-exponents / factors, expected, rtol=1e-5, atol=0.0):
        yield f"{tensor.name} doesn't give the model's rotary frequencies"


def _facts_that_differ(reader: "GGUFReader", model: PreTrainedModel) -> Iterator[str]:
    """Compare what the file says of itself with the model's modules."""
    head_dim = int(_value(reader, "attention.key_length"))
    count = int(_value(reader, "block_count"))
    attentions: list[Any] = [
        model.get_submodule(f"model.layers.{layer}.self_attn") for layer in range(count)
    ]
    for key, part in {"head_count": "q_proj", "head_count_kv": "k_proj"}.items():
        said = _value(reader, f"attention.{key}")
        there = [
            len(attention.get_parameter(f"{part}.weight")) // head_dim for attention in attentions
        ]
        there[0] = max(there[0], 1)  # a head of zeros, where there is none
        if (said if isinstance(said, list) else [said] * count) != there:
            yield f"attention.{key} is {said}, and the model has {there}"
    expected = {
        "block_count": len(model.get_submodule("model.layers")),  # type: ignore[arg-type]
        "embedding_length": model.config.hidden_size,
        "feed_forward_length": model.config.intermediate_size,
        "context_length": model.config.max_position_embeddings,
        "attention.key_length": attentions[0].head_dim,
        "attention.layer_norm_rms_epsilon": float(np.float32(model.config.rms_norm_eps)),
        "rope.freq_base": float(np.float32(model.config.rope_parameters["rope_theta"])),
    }
    for key, value in expected.items():
        if _value(reader, key) != value:
            yield f"{key} is {_value(reader, key)}, and the model has {value}"


def _words_that_differ(reader: "GGUFReader", vocabulary: Vocabulary) -> Iterator[str]:
    expected: dict[str, Any] = {
        "tokens": list(vocabulary.tokens),
        "token_type": list(vocabulary.types),
        "merges": list(vocabulary.merges),
    }
    for key, value in expected.items():
        field = reader.get_field(f"tokenizer.ggml.{key}")
        if field is None or field.contents() != value:
            yield f"tokenizer.ggml.{key} is not the tokenizer's"


def _value(reader: "GGUFReader", key: str) -> Any:
    """Return a number, or a list of them, that the file says of its architecture."""
    architecture = reader.get_field("general.architecture")
    field = architecture and reader.get_field(f"{architecture.contents()}.{key}")
    return field.contents() if field else None
