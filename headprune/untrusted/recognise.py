"""What a model's directory is, told from its files before anything is loaded: adapters, quantised, wrapped, code of its own."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from headprune.errors import ModelError, UnsupportedError
from headprune.untrusted.documents import read_json
from headprune.untrusted.settings import pairs

_ADAPTER = "adapter_config.json"
# What PEFT, the library "adapters" and diffusers call weights that mean nothing without a model.
_ADAPTER_WEIGHTS = re.compile(
    r"(adapter_model|pytorch_adapter|pytorch_lora_weights|lora)\.(safetensors|bin)$"
)
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_IN_NAMES_OF_ADAPTERS = re.compile(
    r"(^|\.)(lora_(?:embedding_)?[AB]|base_layer|modules_to_save|ia3_l|hada_w1_a|lokr_w1)(\.|$)"
)
_IN_NAMES_OF_PACKED = re.compile(
    r"\.(qweight|qzeros|absmax|quant_map|SCB|weight_packed|weight_scale|weight_scale_inv)$"
)
# Parts of tensors' names by what puts them there; those that no model uses itself, and those that models may.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning",
}
_FIRST = {"module": "DataParallel, DistributedDataParallel or DeepSpeed"}
_OURS = re.compile(r"([\w.-]+/[\w.-]+--)?modeling_headprune\.HeadPruned\w+$")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_NO_MODELS = ("Tokenizer", "Processor", "FeatureExtractor")


def refuse_adapters(directory: Path, *, name: str) -> tuple[str, ...]:
    """Refuse adapters that are taken for a model, or that a load would put into it.

    Returns:
        What is to be said of adapters that lie there and do nothing.

    Raises:
        ModelError: There are adapters alone, or adapters that transformers puts into the model as it loads it.
    """
    # Sentence-transformers loads models from folders, too.
    modules = (path for path in directory.glob("[0-9]*_Transformer") if path.is_dir())
    for folder in (directory, *modules):
        if (folder / _ADAPTER).is_file() or _holds_adapters_alone(folder):
            raise _adapters(folder, name=name)
    elsewhere = sorted(path.parent.name for path in directory.glob(f"*/{_ADAPTER}"))
    if elsewhere and not (directory / "config.json").is_file():
        raise _adapters(directory / elsewhere[0], name=f"{name}/{elsewhere[0]}")
    loose = sorted(path.name for path in directory.iterdir() if _ADAPTER_WEIGHTS.match(path.name))
    unused = [*(f"{folder}/" for folder in elsewhere), *loose]
    return (
        (f"careful: adapters lie beside the model ({', '.join(unused)}), and are not a part of it",)
        if unused
        else ()
    )


def _holds_adapters_alone(folder: Path) -> bool:
    weights = [path.name for path in folder.iterdir() if path.suffix in _WEIGHTS]
    return bool(weights) and all(_ADAPTER_WEIGHTS.match(file) for file in weights)


def _adapters(folder: Path, *, name: str) -> ModelError:
    path = folder / _ADAPTER
    settings = read_json(path, error=ModelError) if path.is_file() else {}
    base = settings.get("base_model_name_or_path")
    base = base[:200] if isinstance(base, str) and base else None
    merge = (
        f"PeftModel.from_pretrained(<{base or 'the base model'}, loaded>, {name!r})"
        ".merge_and_unload().save_pretrained('merged')"
    )
    if not (folder / "config.json").is_file() or _holds_adapters_alone(folder):
        return ModelError(
            f"{name} holds adapters alone, to be put into "
            + (base or "a base model that it doesn't name"),
            where=str(path if path.is_file() else folder),
            hint=f"merge them and name the merged model: {merge}",
        )
    return ModelError(
        f"{name} holds a model and adapters beside it"
        + (f" (made for {base})" if base else "")
        + ", which a load would put into it: which of the two is meant can't be told",
        where=str(path),
        hint=f"merge them: {merge}; or move {_ADAPTER} elsewhere if the model is meant without them",
    )


def refuse_quantised_config(settings: dict[str, Any], *, name: str, where: str) -> None:
    """Refuse a config of packed weights, whatever library packed them, also of a model inside.

    Raises:
        UnsupportedError: It is one.
    """
    for key, value in pairs(settings):
        if key in ("quantization_config", "compression_config") and value is not None:
            method = value.get("quant_method") if isinstance(value, dict) else None
            raise _quantised(name, str(method or "by a method that it doesn't name"), where, key)


def _quantised(name: str, method: str, where: str, key: str) -> UnsupportedError:
    return UnsupportedError(
        f"the weights of {name} are quantised ({method[:60]}), and packed rows can't be cut",
        where=f"{where} ({key})",
        hint="take the model as it was before, or dequantise it; prune, then quantise the pruned model again",
    )


def refuse_wrapped_names(names: Collection[str], *, name: str, where: str) -> None:
    """Refuse weights whose names show that they were saved with a wrapper around the model, or adapters in it.

    Raises:
        ModelError: They were saved compiled, parallel, with adapters, or packed.
    """
    for tensor in sorted(names):
        if (adapter := _IN_NAMES_OF_ADAPTERS.search(tensor)) is not None:
            raise ModelError(
                f"the weights of {name} hold adapters that aren't merged ({adapter[2]} in {tensor})",
                where=where,
                hint="merge them and save the model: peft_model.merge_and_unload().save_pretrained('merged')",
            )
        if (packed := _IN_NAMES_OF_PACKED.search(tensor)) is not None:
            raise _quantised(name, f"{packed[1]} in {tensor}", where, "names of tensors")
    wrapper = _wrapper_of(names)
    if wrapper is not None:
        part, by = wrapper
        raise ModelError(
            f"the weights of {name} were saved with what {by} puts around a model: their names have {part!r} in them",
            where=where,
            hint=unwrapping(part),
        )


def unwrapping(prefix: str) -> str:
    """Return how to remove from the names in the weights what a wrapper put before them."""
    return (
        f"save the model inside (model.{prefix.rstrip('.')}.save_pretrained(...)), "
        f"or take {prefix!r} out of the names with safetensors.torch.load_file and save_file"
    )


def _wrapper_of(names: Collection[str]) -> tuple[str, str] | None:
    """Return the part of tensors' names that a wrapper put there, and whose it is."""
    parts = [set(tensor.split(".")[:-1]) for tensor in names]
    for part, by in _WRAPPERS.items():
        if any(part in inside for inside in parts):
            return f"{part}.", by
    for part, by in _FIRST.items():
        if names and all(tensor.startswith(f"{part}.") for tensor in names):
            return f"{part}.", by
    return None


def code_of_its_own(settings: dict[str, Any]) -> str | None:
    """Return the code that a config names for its model, or a model inside; None where it names none, or ours alone."""
    for key, value in pairs(settings):
        if key != "auto_map" or value is None:
            continue
        named = value if isinstance(value, dict) else {"": value}
        for auto_class, code in named.items():
            if not auto_class.endswith(_NO_MODELS) and not _OURS.match(str(code)):
                return f"{auto_class}: {code}"[:200]
    return None


def code_of_the_tokenizer(directory: Path) -> str | None:
    """Return the code of its own that a tokenizer's settings name; None where they name none, or aren't there."""
    path = directory / _TOKENIZER_CONFIG
    named = read_json(path, error=ModelError).get("auto_map") if path.is_file() else None
    code = named.get("AutoTokenizer") if isinstance(named, dict) else named
    classes = [str(item) for item in code if item] if isinstance(code, list) else [code]
    return str(classes[0])[:200] if classes and classes[0] else None


def own_files_alone(directory: Path) -> dict[str, None]:
    """Return the settings that keep a tokenizer to its own files: transformers may follow paths that its config names."""
    path = directory / _TOKENIZER_CONFIG
    settings = read_json(path, error=ModelError) if path.is_file() else {}
    return {key: None for key, value in settings.items() if key.endswith("_file") and value}
