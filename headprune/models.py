"""Find and load models and tokenizers: hub ids, directories, demo models; device, dtype, revision. Never a pickle."""

import hashlib
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from headprune import demo
from headprune.errors import (
    ConfigError,
    ModelError,
    first_line,
    missing_package,
    package_error,
    what_it_says,
)
from headprune.model_config import own_code_error, read_config
from headprune.model_directory import NAME_IT, directory_of
from headprune.placement import values_of
from headprune.untrusted import (
    WHOLE,
    code_of_the_tokenizer,
    module_entries,
    own_files_alone,
    read_header,
    refuse_adapters,
    refuse_damaged_settings,
    refuse_foreign_files,
    refuse_wrapped_names,
    transformer_folder,
    weight_files,
)

_MOST_BYTES_OF_CONFIG = 20_000_000
_TOKENIZER_FILES = ("*token*", "*vocab*", "*spiece*", "*sentencepiece*", "*.model", "tekken.json")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, not loaded yet.

    Args:
        name: As the user wrote it.
        directory: Where its files lie.
        revision: The commit of a hub model; None for a directory.
        config: Its config.
        folder: Its folder's name, where old sentence-transformers keep it in one (``0_Transformer``) of the directory named.
        own_code: The code of its own that the model names and that isn't run, where the stock class was asked for instead.
        notes: What is to be said to the user before the model is used.
    """

    name: str
    directory: Path
    revision: str | None
    config: PreTrainedConfig
    folder: str = ""
    own_code: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The directory that was named."""
        return self.directory.parent if self.folder else self.directory

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Its safetensors files: those that a load reads."""
        return weight_files(self.directory)


@contextmanager
def _reading_files() -> Iterator[None]:
    """Name a file of a model that may not be read.

    Raises:
        ModelError: There is one.
    """
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"a file of the model can't be read: {error.strerror or error}",
            where=f"MODEL {error.filename or ''}".strip(),
            hint="check the path and its permissions",
        ) from error


@_reading_files()
def find(
    name: str, *, revision: str | None = None, weights: bool = True, stock_class: bool = False
) -> ModelSource:
    """Find a model by directory, ``demo:NAME`` or hub id, and check its files before anything is loaded.

    Args:
        name: As the user wrote it.
        revision: Of a hub model.
        weights: Whether they are needed; without, ``config.json`` is enough.
        stock_class: Take transformers' own class for a model that names code of its own, which is never run.

    Raises:
        ModelError: There is no such model, its config or weights are damaged or missing, its type isn't known, it names code of
            its own, or it isn't a model but adapters.
        UnsupportedError: It is quantised.
    """
    notes: tuple[str, ...] = ()
    if name.startswith(demo.PREFIX):
        directory, commit = demo.locate_model(name), None
    else:
        directory, commit = directory_of(name, revision, weights=weights)
        refuse_foreign_files(directory)
        notes = refuse_adapters(directory, name=name)
    directory /= (folder := transformer_folder(directory))
    if not (directory / "config.json").is_file():
        kinds = ", ".join(entry.kind for entry in module_entries(directory) or ())
        raise ModelError(
            f"{name} is made of {kinds}: it has no transformer whose heads could be pruned"
            if kinds and "Transformer" not in kinds
            else f"{name} holds no model: config.json is missing",
            where=f"MODEL {name}",
            hint=NAME_IT,
        )
    config, code = read_config(name, directory)
    if code is not None and not stock_class:
        raise own_code_error(name, code, directory, config.model_type)
    if code is not None:
        notes += (
            f"careful: {name} names code of its own ({code}), which isn't run: this is transformers' own "
            f"{config.model_type} model, and what is saved of it names no code of anybody else",
        )
    if tokenizer := code_of_the_tokenizer(directory):
        notes += (
            f"careful: the tokenizer names code of its own ({tokenizer}), which isn't run: transformers' own is used",
        )
    source = ModelSource(name, directory, commit, config, folder, code, notes)
    if weights:
        for place in {source.root, directory}:
            refuse_damaged_settings(place)
        _check_weights(source)
    return source


def _check_weights(source: ModelSource) -> None:
    """Refuse missing, truncated and pickled weights.

    Raises:
        ModelError: See above.
    """
    if not source.weight_files:
        what = f"no weights ({WHOLE}, or several files and their index)"
        hint = f"name the directory that holds {WHOLE}"
        others = sorted(path for path in source.directory.glob("*.safetensors") if path.is_file())
        if others:
            hint = f"is {others[0].name} the whole model? then name it {WHOLE}"
        if pickled := sorted(source.directory.glob("*.bin")):
            what = f"only pickled weights ({pickled[0].name}), which can run code when loaded"
            hint = "rewrite them as safetensors: headprune convert DIR --out NEW --allow-pickle (which reads tensors alone)"
        raise ModelError(f"{source.name} has {what}", where=str(source.directory), hint=hint)
    names = [tensor.name for path in source.weight_files for tensor in read_header(path).tensors]
    refuse_wrapped_names(names, name=source.name, where=str(source.directory))


def choose_device(name: str) -> torch.device:
    """Return the device a name stands for; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: There is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"the device {name!r} can't be used: {first_line(error)}",
            where="--device",
            hint="use auto, cpu, cuda, cuda:0, mps, or spread (over all GPUs)",
        ) from error
    return device


def choose_dtype(name: str) -> torch.dtype | str:
    """Return the dtype a name stands for; ``auto`` is the checkpoint's own."""
    return _DTYPES.get(name, "auto")


def load_tokenizer(source: ModelSource) -> Any:
    """Load the model's tokenizer.

    Raises:
        ModelError: It is missing or damaged.
    """
    if not any(any(source.directory.glob(name)) for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{source.name} has no tokenizer",
            where=str(source.directory),
            hint="put its files (tokenizer.json, tokenizer_config.json) beside the weights",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.directory, trust_remote_code=False, **own_files_alone(source.directory)
        )
    # The tokenizers library raises bare Exceptions, and panics, which aren't even that.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unreadable_tokenizer(error, source) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise _without_vocabulary(source, "it knows special tokens alone")
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise ModelError(
            f"the model_max_length of {source.name}'s tokenizer is {repr(longest)[:60]}, not a number",
            where=str(source.directory / "tokenizer_config.json"),
            hint="repair it, or fetch the model again",
        )
    return tokenizer


def _without_vocabulary(source: ModelSource, why: str) -> ModelError:
    return ModelError(
        f"the tokenizer of {source.name} has no vocabulary: {why}",
        where=str(source.directory),
        hint="put tokenizer.json, or the files of its vocabulary, beside the weights",
    )


def _unreadable_tokenizer(error: BaseException, source: ModelSource) -> ModelError:
    what, where = f"the tokenizer of {source.name}", str(source.directory)
    # transformers takes a file of SentencePiece that it can't read for one of tiktoken, and asks for the package without a file.
    pieces = any(source.directory.glob("*.model"))
    if not pieces and missing_package(error) == "sentencepiece":
        return _without_vocabulary(source, "neither tokenizer.json nor a file of SentencePiece")
    lacking = pieces and find_spec("sentencepiece") is None
    cause = ImportError("pip install sentencepiece") if lacking else error
    return package_error(cause, what=what, where=where) or ModelError(
        f"{what} can't be loaded: {what_it_says(error)}",
        where=where,
        hint="fetch its files again (tokenizer.json, tokenizer_config.json)",
    )


def fingerprint(model: PreTrainedModel) -> str:
    """Return a hash of the model's parameters: names, shapes, dtypes and a spread of values of each."""
    return fingerprint_of((name, value, value.dtype) for name, value in values_of(model))


def fingerprint_of(parameters: Iterable[tuple[str, Tensor, torch.dtype]]) -> str:
    """Return the fingerprint of parameters that come one by one, sorted by name, each with the dtype it is to count as."""
    digest = hashlib.sha256()
    for name, parameter, dtype in parameters:
        digest.update(f"{name}{tuple(parameter.shape)}{dtype}".encode())
        flat = parameter.detach().flatten()
        if flat.numel():
            # Places spread by a multiplicative hash: an even stride would fall into one column of a matrix.
            places = torch.arange(min(4096, flat.numel())) * 2_654_435_761 % flat.numel()
            values = flat[places.to(flat.device)].to(dtype)
            digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_bytes(directory: Path) -> int:
    """Return the size of the weights in a directory."""
    return sum(path.stat().st_size for path in weight_files(directory))


def available_memory() -> int | None:
    """Return how many bytes a process could still take, this machine's and its container's limit; None where nobody says."""
    limits: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError, StopIteration):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        # Pages of files count as used, and are given back when somebody needs them.
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("inactive_file "))
        limits.append(limit - used + int(line.split()[1]))
    return min(limits, default=None)


def versions() -> dict[str, str]:
    """Return the versions of what computed a number."""
    names = ("headprune", "torch", "transformers")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
