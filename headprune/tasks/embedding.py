"""The modules that sentence-transformers runs after the transformer: each read from its folder into a function on tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize

from headprune.errors import ModelError
from headprune.tasks.pooling import LAYERS, POOLING, SENTENCE, TOKENS, Features, Step, pooled
from headprune.untrusted.directories import ModuleEntry, lies_within
from headprune.untrusted.documents import read_json
from headprune.untrusted.weights import read_header

Widths: TypeAlias = dict[str, int | None]
"""How many numbers each feature has, None where it isn't known."""

AGAIN = "fetch the model again, or save it again with sentence-transformers"
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


@dataclass(frozen=True)
class _Module:
    """A module's folder, read with care.

    Args:
        directory: The directory of the model.
        entry: Which of its modules it is.
        widths: The features that modules before it make.
        prompt_length: Counts the tokens of the prompt, asked for where they don't count.
    """

    directory: Path
    entry: ModuleEntry
    widths: Widths
    prompt_length: Callable[[], int]

    def wrong(self, what: str, *, hint: str = AGAIN) -> ModelError:
        name = self.entry.folder or self.entry.kind
        where = f"{self.directory}/modules.json ({name})"
        return ModelError(f"{name} of the embedding model {what}", where=where, hint=hint)

    def width(self, name: str, expected: int | None = None) -> int | None:
        """Return how many numbers a feature has that it reads: as many as expected, where both are known."""
        if name not in self.widths:
            raise self.wrong(f"reads {name}, which no module before it makes")
        width = self.widths[name]
        if None not in (width, expected) and width != expected:
            raise self.wrong(f"takes {expected} numbers, and what comes before it has {width}")
        return width

    def config(self, *, optional: bool = False) -> dict[str, Any]:
        path = self.directory / self.entry.folder / "config.json"
        if not path.is_file():
            if optional:
                return {}
            raise self.wrong("has no config.json, so it can't be told what it does")
        self._refuse_elsewhere(path)
        return read_json(path, error=ModelError, hint=AGAIN)

    def size(self, settings: Mapping[str, Any], key: str) -> int:
        size = settings.get(key)
        if type(size) is not int or not 1 <= size <= 10_000_000:
            raise self.wrong(f"has the {key} {size!r}")
        return size

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return its weights: the tensors that its config names, and no others."""
        path = self.directory / self.entry.folder / _WEIGHTS
        if not path.is_file():
            pickled = (path.parent / "pytorch_model.bin").is_file()
            raise self.wrong(
                "has only pickled weights (pytorch_model.bin), which can run code when loaded"
                if pickled
                else f"has no weights ({_WEIGHTS})",
                hint="save the model again with sentence-transformers, which writes safetensors",
            )
        self._refuse_elsewhere(path)
        stored = {tensor.name: tensor.shape for tensor in read_header(path).tensors}
        if stored != dict(shapes):
            odd = sorted(set(stored.items()) ^ set(shapes.items()))[0][0]
            raise self.wrong(f"has weights that its config doesn't describe ({odd})")
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).to(torch.float32) for name in shapes}

    def _refuse_elsewhere(self, path: Path) -> None:
        if not lies_within(self.directory, path):
            raise ModelError(
                f"{path.name} is a link to something outside of the model's directory",
                where=str(path),
                hint="put the file itself there",
            )


def read_modules(
    entries: tuple[ModuleEntry, ...],
    directory: Path,
    *,
    token_width: int | None,
    prompt_length: Callable[[], int],
) -> tuple[tuple[Step, ...], list[str]]:
    """Read the modules after the transformer in their order: return their functions, and what they are in words.

    Raises:
        ModelError: One isn't known, is damaged, or doesn't fit what comes before it; or no sentence's embedding is made.
    """
    steps: list[Step] = []
    words: list[str] = []
    widths: Widths = {TOKENS: token_width}
    for entry in entries:
        module = _Module(directory, entry, widths, prompt_length)
        if entry.kind not in _READERS:
            raise module.wrong(
                f"is a {entry.kind}, which headprune can't compute",
                hint=f"headprune knows {', '.join(_READERS)}",
            )
        step, word = _READERS[entry.kind](module)
        steps += [step] if step is not None else []
        words.append(word)
    if SENTENCE not in widths:
        raise ModelError(
            "no module makes one embedding of a sentence's tokens: there is no Pooling",
            where=str(directory / "modules.json"),
            hint=AGAIN,
        )
    return tuple(steps), words


def _pooling(module: _Module) -> tuple[Step, str]:
    settings = module.config()
    modes = _modes(module, settings)
    length = module.prompt_length() if settings.get("include_prompt", True) is False else 0
    width = module.width(TOKENS)
    module.widths[SENTENCE] = None if width is None else width * len(modes)
    word = f"{' + '.join(modes)} pooling" + " without the prompt's tokens" * bool(length)
    return partial(pooled, modes=modes, prompt_length=length), word


def _modes(module: _Module, settings: dict[str, Any]) -> tuple[str, ...]:
    known = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"}
    if unknown := sorted(set(settings) - known - set(_POOLING_KEYS.values())):
        raise module.wrong(f"pools its tokens with {unknown[0]}, which isn't known")
    given = settings.get("pooling_mode")
    if given is None:
        given = [mode for mode, key in _POOLING_KEYS.items() if settings.get(key)] or ["mean"]
    modes = [given] if isinstance(given, str) else given
    if not isinstance(modes, list) or not modes or len(modes) > 2 * len(POOLING):
        raise module.wrong(f"pools its tokens with {given!r}")
    for mode in modes:
        if not isinstance(mode, str) or mode not in POOLING:
            raise module.wrong(
                f"pools its tokens with {mode!r}, which isn't known",
                hint=f"headprune knows {', '.join(POOLING)}",
            )
    return tuple(modes)


def _dense(module: _Module) -> tuple[Step, str]:
    settings = module.config()
    source = settings.get("module_input_name") or SENTENCE
    target = settings.get("module_output_name") or source
    inside, outside = (module.size(settings, key) for key in ("in_features", "out_features"))
    module.width(source, expected=inside)
    residual = bool(settings.get("use_residual", False))
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (outside, inside)}
    if settings.get("bias", True):
        shapes["linear.bias"] = (outside,)
    if residual and inside != outside:
        shapes["residual.weight"] = (outside, inside)
    activation = _activation(module, settings.get("activation_function", "torch.nn.Tanh"))
    weights = module.tensors(shapes)

    def step(features: Features) -> Features:
        values = features[source]
        near = {name: tensor.to(values) for name, tensor in weights.items()}
        result = activation(linear(values, near["linear.weight"], near.get("linear.bias")))
        if residual:
            shortcut = near.get("residual.weight")
            result = result + (values if shortcut is None else linear(values, shortcut))
        return {**features, target: result}

    module.widths[target] = outside
    return step, f"Dense {inside} to {outside} ({type(activation).__name__})"


def _activation(module: _Module, name: Any) -> nn.Module:
    namespace, _, kind = str(name).rpartition(".")
    if kind not in _ACTIVATIONS or not f"{namespace}.".startswith("torch.nn."):
        raise module.wrong(
            f"has the activation {name!r}, which isn't run",
            hint=f"headprune knows those of torch.nn: {', '.join(sorted(_ACTIVATIONS))}",
        )
    activation: nn.Module = getattr(nn, kind)()
    return activation


def _layer_norm(module: _Module) -> tuple[Step, str]:
    size = module.size(module.config(), "dimension")
    module.width(SENTENCE, expected=size)
    weights = module.tensors({"norm.weight": (size,), "norm.bias": (size,)})

    def step(features: Features) -> Features:
        values = features[SENTENCE]
        weight, bias = (weights[name].to(values) for name in ("norm.weight", "norm.bias"))
        return {**features, SENTENCE: layer_norm(values, weight.shape, weight, bias)}

    return step, "LayerNorm"


def _normalize(module: _Module) -> tuple[Step, str]:
    settings = module.config(optional=True)
    source = settings.get("module_input_name", SENTENCE)
    target = settings.get("module_output_name") or source
    module.widths[target] = module.width(source)

    def step(features: Features) -> Features:
        if source not in features:
            return features
        return {**features, target: normalize(features[source], dim=-1)}

    return step, "Normalize"


def _dropout(module: _Module) -> tuple[None, str]:
    module.width(SENTENCE)
    return None, "Dropout (none outside of training)"


def _weighted_layers(module: _Module) -> tuple[Step, str]:
    settings = {"num_hidden_layers": 12, "layer_start": 4, **module.config()}
    layers, start = module.size(settings, "num_hidden_layers"), settings["layer_start"]
    if type(start) is not int or not 0 <= start <= layers:
        raise module.wrong(f"has the layer_start {start!r}")
    weights = module.tensors({"layer_weights": (layers + 1 - start,)})["layer_weights"]

    def step(features: Features) -> Features:
        """Put the weighted mean of the layers in place of the last one, where all layers are put out."""
        if LAYERS not in features:
            return features
        chosen = features[LAYERS][start:]
        factors = weights.to(chosen)
        mean = (chosen * factors.view(-1, 1, 1, 1)).sum(0) / factors.sum()
        return {**features, TOKENS: mean}

    return step, f"WeightedLayerPooling from layer {start} on"


_READERS: dict[str, Callable[[_Module], tuple[Step | None, str]]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
    "Dropout": _dropout,
    "WeightedLayerPooling": _weighted_layers,
}
"""The modules that are computed, by the names of their classes in sentence-transformers."""
