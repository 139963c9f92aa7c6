"""Weights of other formats become a directory that ``from_pretrained`` loads: once, in the cache, complete or not at all."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.demo import cache_directory
from headprune.runtime.files import staged_directory


def converted(name: str, build: Callable[[Path], None]) -> Path:
    """Return the directory of a converted model; ``build`` fills it where it isn't there yet."""
    target = cache_directory() / "models" / name
    if not (target / "config.json").is_file():
        print(f"converting {name}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        with staged_directory(target) as folder:
            build(folder)
    return target


def write_model(
    folder: Path,
    kind: type[PreTrainedModel],
    *,
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
) -> PreTrainedModel:
    """Write config and weights, and return the model that loads from them.

    Raises:
        ValueError: A weight is missing, unexpected or of another shape.
    """
    config.architectures = [kind.__name__]
    config.save_pretrained(folder)
    contiguous = {name: value.clone().contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    load: Any = kind.from_pretrained  # typed as if it never returned what it found beside the model
    model, info = load(folder, output_loading_info=True)
    complaints = {name: sorted(map(str, names))[:5] for name, names in info.items() if names}
    if complaints:
        raise ValueError(f"the conversion is not complete: {complaints}")
    loaded: PreTrainedModel = model.eval()
    return loaded
