"""Find and load models and tokenizers: hub ids, directories, demo models; device, dtype, revision. Never a pickle."""

import hashlib
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from headprune import demo
from headprune.errors import ConfigError, ModelError, did_you_mean, first_line
from headprune.placement import values_of
from headprune.untrusted import (
    check_settings,
    indexed_files,
    read_header,
    read_json,
    refuse_foreign_files,
)

# What a load, a card and a manifest need. The code beside the weights is fetched, not run.
_WANTED_FILES = [
    *("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"),
    *("*.py", "*.yaml", "README.md", "1_Pooling/*"),
]
_MOST_BYTES_OF_CONFIG = 20_000_000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, not loaded yet.

    Args:
        name: As the user wrote it.
        directory: Where its files lie.
        revision: The commit of a hub model; None for a directory.
        config: Its config.
    """

    name: str
    directory: Path
    revision: str | None
    config: PreTrainedConfig

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Its safetensors files."""
        return tuple(sorted(self.directory.glob("*.safetensors")))


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
def find(name: str, *, revision: str | None = None, weights: bool = True) -> ModelSource:
    """Find a model by directory, ``demo:NAME`` or hub id, and check its files before anything is loaded.

    Args:
        name: As the user wrote it.
        revision: Of a hub model.
        weights: Whether they are needed; without, ``config.json`` is enough.

    Raises:
        ModelError: There is no such model, its config or weights are damaged or missing, or its type isn't known.
    """
    if name.startswith(demo.PREFIX):
        directory, commit = demo.locate_model(name), None
    else:
        directory, commit = _directory(name, revision, weights=weights)
        refuse_foreign_files(directory)
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{name} holds no model: config.json is missing",
            where=f"MODEL {name}",
            hint="name the directory that holds config.json and model.safetensors",
        )
    config = _config(name, directory)
    source = ModelSource(name, directory, commit, config)
    if weights:
        _check_weights(source)
    return source


def _directory(name: str, revision: str | None, *, weights: bool) -> tuple[Path, str | None]:
    """Return where a model's files lie, and the commit of a hub model.

    Raises:
        ModelError: There is no such directory or hub id.
    """
    try:
        is_here, is_directory = Path(name).exists(), Path(name).is_dir()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name[:100]!r} can't be looked for: {getattr(error, 'strerror', None) or error}",
            where="MODEL",
            hint="check the path and the permissions",
        ) from error
    if is_here and not is_directory:
        raise ModelError(
            f"{name} is a file, not the directory of a model",
            where=f"MODEL {name}",
            hint="name the directory that holds config.json and model.safetensors",
        )
    if is_here:
        return Path(name), None
    directory = _download(name, revision, weights=weights)
    return directory, directory.name


def _download(name: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"there is no directory {name}", where=f"MODEL {name}", hint="check the path"
        )
    try:
        wanted = _WANTED_FILES if weights else ["*.json"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a directory nor a hub id",
            where=f"MODEL {name}",
            hint="check the name",
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:  # hub and connection errors are OSErrors
        raise ModelError(
            f"the model {name} is not a directory here, and it could not be had from the hub",
            where=f"MODEL {name}" + (f" --revision {revision}" if revision else ""),
            hint="check the name and the network; HF_HUB_OFFLINE=1 allows only what is in the cache",
        ) from error


def _config(name: str, directory: Path) -> PreTrainedConfig:
    path = directory / "config.json"
    settings = read_json(
        path, error=ModelError, hint="fetch the model again", most_bytes=_MOST_BYTES_OF_CONFIG
    )
    check_settings(settings, where=str(path))
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"unknown model type {model_type!r}",
            where=f"{path} (model_type)",
            hint="pip install --upgrade transformers, or "
            + did_you_mean(str(model_type), _closest(str(model_type), CONFIG_MAPPING)),
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # config classes validate with exceptions of many kinds
        raise ModelError(
            f"the config of {name} is not valid: {_last_line(error)}",
            where=str(path),
            hint="repair config.json",
        ) from error
    return config


def _last_line(error: BaseException) -> str:
    return (
        first_line(ValueError(str(error).strip().splitlines()[-1]))
        if str(error).strip()
        else type(error).__name__
    )


def _closest(word: str, known: Any) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(word, list(known), n=3, cutoff=0.4) or ["bert", "gpt2", "llama"]


def _check_weights(source: ModelSource) -> None:
    """Refuse missing, truncated and pickled weights.

    Raises:
        ModelError: See above.
    """
    if not source.weight_files:
        pickled = sorted(source.directory.glob("*.bin"))
        raise ModelError(
            f"{source.name} has only pickled weights ({pickled[0].name}), which can run code when loaded"
            if pickled
            else f"{source.name} has no weights (*.safetensors)",
            where=str(source.directory),
            hint="rewrite them as safetensors: headprune convert DIR --out NEW --allow-pickle (which reads tensors alone)"
            if pickled
            else "name the directory that holds config.json and model.safetensors",
        )
    indexed_files(source.directory)
    for path in source.weight_files:
        read_header(path)


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
        torch.empty(0, device=device)
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
    try:
        return AutoTokenizer.from_pretrained(source.directory, trust_remote_code=False)
    except (
        BaseException
    ) as error:  # the tokenizers library raises bare Exceptions, and panics, which aren't even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the tokenizer of {source.name} can't be loaded: {first_line(error)}",
            where=str(source.directory),
            hint="put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights",
        ) from error


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
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


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
