"""The modules after the transformer, one reader each: folder -> function on tensors, and what it is in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from headprune.errors import ModelError
from headprune.tasks.embedding import (
    POOLING,
    SENTENCE,
    TOKENS,
    Step,
    dense,
    layer_normalized,
    normalized,
    pooled,
    weighted_layers,
)
from headprune.untrusted.directories import ModuleEntry, lies_within
from headprune.untrusted.documents import read_json
from headprune.untrusted.weights import read_header

_AGAIN = "fetch the model again, or save it again with sentence-transformers"
_WEIGHTS = "model.safetensors"
_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_ACTIVATIONS = frozenset(
    {
        *("Identity", "Tanh", "ReLU", "ReLU6", "GELU", "SiLU", "Mish", "ELU", "CELU", "SELU"),
        *("Sigmoid", "LogSigmoid", "Hardtanh", "Hardswish", "Hardsigmoid", "LeakyReLU"),
        *("Softplus", "Softsign", "Softshrink", "Hardshrink", "Tanhshrink"),
    }
)
_TANH = "torch.nn.modules.activation.Tanh"


@dataclass(frozen=True)
class Chain:
    """What is known while modules are read in their order.

    Args:
        directory: The directory of the model.
        token_width: How many numbers a token's state has; None where it isn't known.
        prompt_length: Counts the tokens of the prompt, asked for where they don't count.
        widths: What has been made so far, by name, with how many numbers it has.
    """

    directory: Path
    token_width: int | None
    prompt_length: Callable[[], int]
    widths: Mapping[str, int | None] | None = None

    def width(self, name: str, entry: ModuleEntry) -> int | None:
        """Return the width of what a module reads.

        Raises:
            ModelError: There is no such thing yet.
        """
        known = self.widths if self.widths is not None else {TOKENS: self.token_width}
        if name not in known:
            raise _wrong(entry, f"reads {name}, which no module before it makes", self.directory)
        return known[name]

    def after(self, name: str, width: int | None) -> "Chain":
        """Return the chain with something more made."""
        known = self.widths if self.widths is not None else {TOKENS: self.token_width}
        return replace(self, widths={**known, name: width})


def mean_of_tokens(mode: str = "mean") -> Step:
    """Return the step that pools all tokens in one way."""
    return partial(pooled, modes=(mode,), prompt_length=0)


def join(entries: tuple[ModuleEntry, ...], chain: Chain) -> tuple[tuple[Step, ...], list[str]]:
    """Read modules in their order: return their functions, and what they are in words.

    Raises:
        ModelError: One isn't known, is damaged, or doesn't fit what comes before it; or no sentence's embedding is made.
    """
    steps: list[Step] = []
    words: list[str] = []
    for entry in entries:
        if entry.kind not in _READERS:
            raise _wrong(
                entry,
                f"is a {entry.kind}, which headprune can't compute",
                chain.directory,
                hint=f"headprune knows {', '.join(_READERS)}",
            )
        step, word, chain = _READERS[entry.kind](entry, chain)
        steps += [step] if step is not None else []
        words += [word]
    if chain.widths is None or SENTENCE not in chain.widths:
        raise ModelError(
            "no module makes one embedding of a sentence's tokens: there is no Pooling",
            where=str(chain.directory / "modules.json"),
            hint=_AGAIN,
        )
    return tuple(steps), words


def _pooling(entry: ModuleEntry, chain: Chain) -> tuple[Step | None, str, Chain]:
    settings = _config(entry, chain.directory)
    modes = _modes(settings, entry, chain.directory)
    without_prompt = settings.get("include_prompt", True) is False
    length = chain.prompt_length() if without_prompt else 0
    width = chain.width(TOKENS, entry)
    made = None if width is None else width * len(modes)
    word = f"{' + '.join(modes)} pooling" + " without the prompt's tokens" * bool(length)
    return partial(pooled, modes=modes, prompt_length=length), word, chain.after(SENTENCE, made)


def _modes(settings: dict[str, Any], entry: ModuleEntry, directory: Path) -> tuple[str, ...]:
    known = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"}
    unknown = sorted(set(settings) - known - set(_POOLING_KEYS.values()))
    if unknown:
        raise _wrong(entry, f"pools its tokens with {unknown[0]}, which isn't known", directory)
    given = settings.get("pooling_mode")
    if given is None:
        given = [mode for mode, key in _POOLING_KEYS.items() if settings.get(key)] or ["mean"]
    modes = [given] if isinstance(given, str) else given
    if not isinstance(modes, list) or not modes or len(modes) > 2 * len(POOLING):
        raise _wrong(entry, f"pools its tokens with {given!r}", directory)
    for mode in modes:
        if not isinstance(mode, str) or mode not in POOLING:
            raise _wrong(
                entry,
                f"pools its tokens with {mode!r}, which isn't known",
                directory,
                hint=f"headprune knows {', '.join(POOLING)}",
            )
    return tuple(modes)


def _dense(entry: ModuleEntry, chain: Chain) -> tuple[Step | None, str, Chain]:
    directory = chain.directory
    settings = _config(entry, directory)
    source = settings.get("module_input_name") or SENTENCE
    target = settings.get("module_output_name") or source
    inside, outside = (_size(settings, key, entry, directory) for key in _DENSE_SIZES)
    width = chain.width(source, entry)
    if width is not None and width != inside:
        raise _wrong(
            entry, f"takes {inside} numbers, and what comes before it has {width}", directory
        )
    residual = bool(settings.get("use_residual", False))
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (outside, inside)}
    if settings.get("bias", True):
        shapes["linear.bias"] = (outside,)
    if residual and inside != outside:
        shapes["residual.weight"] = (outside, inside)
    activation = _activation(settings.get("activation_function", _TANH), entry, directory)
    step = partial(
        dense,
        source=source,
        target=target,
        weights=_tensors(entry, directory, shapes),
        activation=activation,
        residual=residual,
    )
    word = f"Dense {inside} to {outside} ({type(activation).__name__})"
    return step, word, chain.after(target, outside)


_DENSE_SIZES = ("in_features", "out_features")


def _activation(name: Any, entry: ModuleEntry, directory: Path) -> nn.Module:
    namespace, _, kind = str(name).rpartition(".")
    if kind not in _ACTIVATIONS or not f"{namespace}.".startswith("torch.nn."):
        raise _wrong(
            entry,
            f"has the activation {name!r}, which isn't run",
            directory,
            hint=f"headprune knows those of torch.nn: {', '.join(sorted(_ACTIVATIONS))}",
        )
    made: nn.Module = getattr(nn, kind)()
    return made


def _layer_norm(entry: ModuleEntry, chain: Chain) -> tuple[Step | None, str, Chain]:
    size = _size(_config(entry, chain.directory), "dimension", entry, chain.directory)
    width = chain.width(SENTENCE, entry)
    if width is not None and width != size:
        raise _wrong(
            entry, f"takes {size} numbers, and what comes before it has {width}", chain.directory
        )
    shapes = {"norm.weight": (size,), "norm.bias": (size,)}
    weights = _tensors(entry, chain.directory, shapes)
    return partial(layer_normalized, weights=weights), "LayerNorm", chain


def _normalize(entry: ModuleEntry, chain: Chain) -> tuple[Step | None, str, Chain]:
    settings = _config(entry, chain.directory, optional=True)
    source = settings.get("module_input_name", SENTENCE)
    target = settings.get("module_output_name") or source
    width = chain.width(source, entry)
    step = partial(normalized, source=source, target=target)
    return step, "Normalize", chain.after(target, width)


def _dropout(entry: ModuleEntry, chain: Chain) -> tuple[Step | None, str, Chain]:
    chain.width(SENTENCE, entry)
    return None, "Dropout (none outside of training)", chain


def _weighted_layers(entry: ModuleEntry, chain: Chain) -> tuple[Step | None, str, Chain]:
    settings = _config(entry, chain.directory)
    layers = _size(
        {"num_hidden_layers": 12, **settings}, "num_hidden_layers", entry, chain.directory
    )
    start = settings.get("layer_start", 4)
    if type(start) is not int or not 0 <= start <= layers:
        raise _wrong(entry, f"has the layer_start {start!r}", chain.directory)
    shapes = {"layer_weights": (layers + 1 - start,)}
    weights = _tensors(entry, chain.directory, shapes)["layer_weights"]
    word = f"WeightedLayerPooling from layer {start} on"
    return partial(weighted_layers, weights=weights, start=start), word, chain


_READERS: dict[str, Callable[[ModuleEntry, Chain], tuple[Step | None, str, Chain]]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
    "Dropout": _dropout,
    "WeightedLayerPooling": _weighted_layers,
}
"""The modules that are computed, by the names of their classes in sentence-transformers."""


def _size(settings: dict[str, Any], key: str, entry: ModuleEntry, directory: Path) -> int:
    size = settings.get(key)
    if type(size) is not int or not 1 <= size <= 10_000_000:
        raise _wrong(entry, f"has the {key} {size!r}", directory)
    return size


def _config(entry: ModuleEntry, directory: Path, *, optional: bool = False) -> dict[str, Any]:
    path = directory / entry.folder / "config.json"
    if not path.is_file():
        if optional:
            return {}
        raise _wrong(entry, "has no config.json, so it can't be told what it does", directory)
    _refuse_elsewhere(directory, path)
    return read_json(path, error=ModelError, hint=_AGAIN)


def _tensors(
    entry: ModuleEntry, directory: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return a module's weights: those that its config speaks of, and no others.

    Raises:
        ModelError: They are missing, pickled, or of other names or shapes.
    """
    path = directory / entry.folder / _WEIGHTS
    if not path.is_file():
        pickled = (path.parent / "pytorch_model.bin").is_file()
        raise _wrong(
            entry,
            "has only pickled weights (pytorch_model.bin), which can run code when loaded"
            if pickled
            else f"has no weights ({_WEIGHTS})",
            directory,
            hint="save the model again with sentence-transformers, which writes safetensors",
        )
    _refuse_elsewhere(directory, path)
    stored = {tensor.name: tensor.shape for tensor in read_header(path).tensors}
    if stored != dict(shapes):
        odd = sorted(set(stored.items()) ^ set(shapes.items()))[0][0]
        raise _wrong(entry, f"has weights that its config doesn't describe ({odd})", directory)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).to(torch.float32) for name in shapes}


def _refuse_elsewhere(directory: Path, path: Path) -> None:
    if not lies_within(directory, path):
        raise ModelError(
            f"{path.name} is a link to something outside of the model's directory",
            where=str(path),
            hint="put the file itself there",
        )


def _wrong(entry: ModuleEntry, what: str, directory: Path, *, hint: str = _AGAIN) -> ModelError:
    name = entry.folder or entry.kind
    return ModelError(
        f"{name} of the embedding model {what}",
        where=f"{directory}/modules.json ({name})",
        hint=hint,
    )
