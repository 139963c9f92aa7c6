"""A directory of sentence-transformers, read: what its model does with a text, before and after the transformer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForTextEncoding

from headprune.anatomy.exceptions import ENCODERS_WITHOUT_AUTO_MODEL, SENTENCE_ENCODERS
from headprune.errors import ModelError
from headprune.tasks.embedder_settings import (
    default_prompt,
    longest_input,
    model_settings,
    transformer_settings,
)
from headprune.tasks.embedding import LAYERS, MASK, SENTENCE, TOKENS, Step
from headprune.tasks.embedding_modules import Chain, join, mean_of_tokens
from headprune.untrusted.directories import ModuleEntry, module_entries, transformer_folder

_ENCODER_ALONE = (
    "encoder alone (pruned, it loads by headprune.load, or by transformers with trust_remote_code=True; sentence-transformers "
    "builds encoders of this family whole)"
)
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True, eq=False)
class Embedder:
    """What a sentence-embedding model is, beside its transformer.

    Args:
        steps: From token states to the sentence's embedding, one function a module.
        described: The same in words.
        auto_class: The ``AutoModel...`` class that loads the transformer.
        prompt: What is put before every text.
        lower_case: Whether texts are lower-cased before they are tokenised.
        max_length: The longest input in tokens; None where nothing says.
        dimensions: How many numbers of the embedding count; None: all.
        similarity: How two embeddings are compared: ``cosine``, ``dot``, ``euclidean``, ``manhattan``.
    """

    steps: tuple[Step, ...]
    described: str
    auto_class: str = "AutoModel"
    prompt: str = ""
    lower_case: bool = False
    max_length: int | None = None
    dimensions: int | None = None
    similarity: str = "cosine"


MEAN = Embedder((mean_of_tokens(),), "the mean of the tokens")
"""What is assumed where nothing says how tokens become an embedding."""


def embedding_of(
    embedder: Embedder, outputs: Any, inputs: Mapping[str, Tensor]
) -> Float[Tensor, "rows hidden"]:
    """Return the sentences' embeddings, as ``SentenceTransformer.encode`` does."""
    hidden = outputs.last_hidden_state.float()
    features = {TOKENS: hidden, MASK: inputs["attention_mask"]}
    layers = getattr(outputs, "hidden_states", None)
    if layers is not None:
        features[LAYERS] = torch.stack([layer.float() for layer in layers])
    for step in embedder.steps:
        features = dict(step(features))
    embedding: Tensor = features[SENTENCE][:, : embedder.dimensions]
    return embedding


def read_embedder(directory: Path | None, *, config: Any = None, tokenizer: Any = None) -> Embedder:
    """Read how a model embeds sentences.

    Args:
        directory: The directory that was named; None for a model in memory.
        config: The transformer's config.
        tokenizer: Its tokenizer, which counts a prompt's tokens where these don't count.

    Raises:
        ModelError: It embeds in a way that headprune can't compute exactly; the message names what.
    """
    auto_class = _auto_class(config)
    entries = None if directory is None else module_entries(directory)
    if directory is None or entries is None:
        return _assumed(directory, config, auto_class)
    settings = transformer_settings(directory / transformer_folder(directory))
    model = model_settings(directory)
    prompt = default_prompt(model, where=directory)
    lower_case = bool(settings.get("do_lower_case", False))
    max_length = longest_input(settings, config, tokenizer)
    chain = Chain(
        directory,
        token_width=getattr(config, "hidden_size", None),
        prompt_length=lambda: _prompt_length(prompt, tokenizer, lower_case, max_length),
    )
    steps, words = join(_after_transformer(entries, directory), chain)
    similarity = model.get("similarity_fn_name")
    similarity = similarity if similarity in _SIMILARITIES else "cosine"
    dimensions = model.get("truncate_dim")
    words += [_ENCODER_ALONE] * (auto_class != "AutoModel")
    words += [f"the first {dimensions} numbers"] * (dimensions is not None)
    words += [f"prompt {prompt!r}"] * bool(prompt) + ["lower-cased"] * lower_case
    named = sorted(name for name, text in (model.get("prompts") or {}).items() if text)
    words += [f"none of its prompts ({', '.join(named)})"] * bool(named and not prompt)
    words += [f"compared by {similarity} (a loss compares by cosine)"] * (similarity != "cosine")
    return Embedder(
        steps=steps,
        described=", ".join(words),
        auto_class=auto_class,
        prompt=prompt,
        lower_case=lower_case,
        max_length=max_length,
        dimensions=dimensions,
        similarity=similarity,
    )


def _auto_class(config: Any) -> str:
    model_type = getattr(config, "model_type", None)
    if model_type in ENCODERS_WITHOUT_AUTO_MODEL:
        raise ModelError(
            f"sentence-transformers embeds with the encoder of a {model_type} model alone, which isn't supported",
            where="config.json (model_type)",
            hint="take an embedding model of another family, or another --task",
        )
    return AutoModelForTextEncoding.__name__ if model_type in SENTENCE_ENCODERS else "AutoModel"


def _assumed(directory: Path | None, config: Any, auto_class: str) -> Embedder:
    """Return what sentence-transformers does with a model that isn't one of its own.

    Raises:
        ModelError: Modules lie beside it, and nothing says that they belong to it.
    """
    loose = sorted(directory.glob("[0-9]*_*/config.json")) if directory is not None else []
    if loose:
        name = loose[0].parent.name
        raise ModelError(
            f"{name} lies beside the model, and modules.json, which would say that it is used, is missing",
            where=str(directory),
            hint=f"put modules.json back, as sentence-transformers wrote it, or remove {name}: a pooling is assumed then",
        )
    architectures = getattr(config, "architectures", None) or [""]
    last = architectures[0].endswith("ForCausalLM") and getattr(config, "is_causal", True)
    mode = "lasttoken" if last else "mean"
    described = f"{mode} pooling is assumed: there is no modules.json that says how tokens become an embedding"
    return Embedder((mean_of_tokens(mode),), described, auto_class=auto_class)


def _after_transformer(
    entries: tuple[ModuleEntry, ...], directory: Path
) -> tuple[ModuleEntry, ...]:
    if not entries or entries[0].kind != "Transformer":
        first = entries[0].kind if entries else "nothing"
        raise ModelError(
            f"the model begins with {first}, not with a Transformer",
            where=str(directory / "modules.json"),
            hint="take an embedding model that has attention heads",
        )
    folder = entries[0].folder
    if folder != transformer_folder(directory):
        raise ModelError(
            f"modules.json says that the transformer lies in {folder}, and there is none",
            where=str(directory / folder),
            hint="fetch the model again, or save it again with sentence-transformers",
        )
    return entries[1:]


def _prompt_length(prompt: str, tokenizer: Any, lower_case: bool, max_length: int) -> int:
    """Return how many tokens a prompt begins a text with."""
    if not prompt:
        return 0
    ids = lower_casing(tokenizer, lower_case)(prompt, truncation=True, max_length=max_length)
    tokens = ids["input_ids"]
    return len(tokens) - (bool(tokens) and tokens[-1] in tokenizer.all_special_ids)


def lower_casing(tokenizer: Any, lower_case: bool) -> Any:
    """Return the tokenizer, or a copy of it that lower-cases texts first: special tokens stay as they are.

    Raises:
        ModelError: It has no place for that.
    """
    if not lower_case:
        return tokenizer
    import copy

    from tokenizers.normalizers import Lowercase, Sequence

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"do_lower_case is on, and a {type(tokenizer).__name__} can't lower-case",
            where="sentence_bert_config.json",
            hint="put tokenizer.json beside the weights",
        )
    made = copy.deepcopy(tokenizer)
    own = made.backend_tokenizer.normalizer
    made.backend_tokenizer.normalizer = Sequence([Lowercase(), *([own] if own else [])])
    return made
