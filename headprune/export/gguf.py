"""Write a llama-like model, pruned or not, as one GGUF file, and prove it by reading the file back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.artefact import Artefact, Proof
from headprune.errors import CheckpointError, ConfigError, UnsupportedError
from headprune.export.layout import Layout, lay_out, rope_factors
from headprune.export.readback import file_equals_model
from headprune.export.vocabulary import Vocabulary
from headprune.runtime.files import staged_file
from headprune.runtime.targets import refuse_unwritable
from headprune.verify import require

if TYPE_CHECKING:
    from gguf import GGUFWriter

_MAGIC = b"GGUF"
# dtype: name of the type in llama.cpp, for tensors and for files.
_DTYPES = {
    torch.float32: ("F32", "ALL_F32"),
    torch.float16: ("F16", "MOSTLY_F16"),
    torch.bfloat16: ("BF16", "MOSTLY_BF16"),
}


class Exported(Artefact):
    """What was written.

    ``heads`` and ``key_value_heads`` are per layer; ``tokenizer`` is the rule that splits words, None if none was written.
    """

    written_by = "export"

    file: str
    architecture: Literal["llama", "deci"]
    heads: tuple[int, ...]
    key_value_heads: tuple[int, ...]
    dtype: str
    tensors: int
    bytes: int
    tokenizer: str | None
    proofs: tuple[Proof, ...]


def library() -> Any:
    """Return the package ``gguf``.

    Raises:
        ConfigError: It isn't installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "writing GGUF needs the package gguf, which is not installed",
            where="`gguf`",
            hint="pip install 'gguf>=0.17'",
        ) from error
    return gguf


def refuse_unusable_file(path: Path, *, overwrite: bool, needed_bytes: int = 0) -> None:
    """Check, before any work starts, that a GGUF file can be written.

    Raises:
        CheckpointError: It exists (and ``overwrite`` is off, or it isn't a GGUF file), or can't be created, or the disk is full.
        ConfigError: The package ``gguf`` isn't installed.
    """
    library()
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a directory", where="`gguf`", hint=f"name a file: `gguf={path}/model.gguf`"
        )
    refuse_unwritable(path, where=f"`gguf={path}`", needed_bytes=needed_bytes)
    if path.exists():
        if not overwrite:
            raise CheckpointError(
                f"{path} is there already",
                where="`gguf`",
                hint="choose another name, or say `overwrite=True` to replace it",
            )
        _refuse_other_files(path)


def _refuse_other_files(path: Path) -> None:
    """Refuse to replace a file that isn't GGUF."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if start != _MAGIC:
        raise CheckpointError(
            f"{path} is not a GGUF file, and is not replaced",
            where="`gguf`",
            hint="choose another name, or remove it yourself",
        )


def export_gguf(
    model: PreTrainedModel,
    path: Path,
    *,
    vocabulary: Vocabulary | None,
    name: str,
    overwrite: bool = False,
) -> Exported:
    """Write ``model`` as a GGUF file, atomically, and read it back before it gets its name.

    Args:
        model: A causal language model whose mathematics is llama's (see :func:`refuse_family`).
        path: Where to.
        vocabulary: Its tokenizer; without one the file holds weights alone, for token ids.
        name: What the model is called in the file.
        overwrite: Replace a GGUF file.

    Raises:
        CheckpointError: The file is there already, or can't be written; nothing is left half-written.
        ProofError: What was read back isn't the model; nothing is kept.
        UnsupportedError: The model has something that llama has not.
    """
    library()
    layout = lay_out(model)
    numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    refuse_unusable_file(path, overwrite=overwrite, needed_bytes=numbers * _dtype(model).itemsize)
    may_replace = _refuse_other_files if overwrite else None
    with staged_file(path, may_replace=may_replace) as temporary:
        _write(model, temporary, layout=layout, vocabulary=vocabulary, name=name)
        proof = file_equals_model(temporary, model, vocabulary=vocabulary)
        require([proof])
    return Exported(
        file=str(path),
        architecture="llama" if layout.architecture == "llama" else "deci",
        heads=layout.heads,
        key_value_heads=layout.key_value_heads,
        dtype=str(_dtype(model)).removeprefix("torch."),
        tensors=len(layout.entries) + (rope_factors(model) is not None),
        bytes=path.stat().st_size,
        tokenizer=vocabulary.pre if vocabulary else None,
        proofs=(proof,),
    )


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the number of tokens that the model knows."""
    weight: Tensor = model.get_input_embeddings().get_parameter("weight")
    return weight.shape[0]


def _dtype(model: PreTrainedModel) -> torch.dtype:
    dtype = model.get_input_embeddings().get_parameter("weight").dtype
    if dtype not in _DTYPES:
        raise UnsupportedError(
            f"the model can't be written as GGUF: its weights are {dtype}",
            where="config.json (dtype)",
            hint="choose `dtype=float32`, `dtype=bfloat16` or `dtype=float16`",
        )
    return dtype


def _write(
    model: PreTrainedModel, path: Path, *, layout: Layout, vocabulary: Vocabulary | None, name: str
) -> None:
    gguf = library()
    writer = gguf.GGUFWriter(path, layout.architecture)
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[_DTYPES[_dtype(model)][1]])
        _add_sizes(writer, model, layout)
        _add_vocabulary(writer, vocabulary)
        factors = rope_factors(model)
        if factors is not None:
            _add_tensor(writer, "rope_freqs.weight", factors)
        state = model.state_dict()
        for entry in layout.entries:
            tensor = _with_a_head(state[entry.parameter].detach().cpu(), head_dim=layout.head_dim)
            if entry.rotated_heads:
                tensor = _interleave(tensor, heads=entry.rotated_heads)
            _add_tensor(writer, entry.name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _with_a_head(tensor: Tensor, *, head_dim: int) -> Tensor:
    """Give a projection that has lost all heads one of zeros (only the first layer's comes here, see ``layout``)."""
    if tensor.numel():
        return tensor
    return tensor.new_zeros([size or head_dim for size in tensor.shape])


def _interleave(rows: Tensor, *, heads: int) -> Tensor:
    """Put the two numbers that a rotation turns side by side, as llama.cpp has them; transformers' are half a head apart."""
    size = rows.shape[0] // heads
    pairs: Tensor = rows.unflatten(0, (heads, 2, size // 2)).transpose(1, 2)
    return pairs.flatten(0, 2)


def _add_tensor(writer: "GGUFWriter", name: str, tensor: Tensor) -> None:
    # Vectors are norms and rotary factors, which llama.cpp wants in float32.
    tensor = (tensor.float() if tensor.dim() == 1 else tensor).contiguous()
    kind = library().GGMLQuantizationType[_DTYPES[tensor.dtype][0]]
    data = (
        tensor.view(torch.uint8) if tensor.dtype == torch.bfloat16 else tensor
    )  # no such type in numpy
    writer.add_tensor(name, data.numpy(), raw_dtype=kind)


def _add_sizes(writer: "GGUFWriter", model: PreTrainedModel, layout: Layout) -> None:
    config = model.config
    even = layout.architecture == "llama"
    writer.add_vocab_size(embedding_rows(model))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layout.heads))
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(layout.heads[0] if even else layout.heads)
    writer.add_head_count_kv(layout.key_value_heads[0] if even else layout.key_value_heads)
    writer.add_key_length(layout.head_dim)
    writer.add_value_length(layout.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(layout.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(library().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _add_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for role, index in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
