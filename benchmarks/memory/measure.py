"""How much memory pruning and looking take, in processes of their own.

A 70B Llama is looked at from its config, and a random Llama of about 2 GB is pruned from file to file (peak <= 1.3 x its size, or
exit 1) and in memory. Takes a few minutes and 6 GB of disk in the temporary folder.

This process itself stays small and imports no torch: Linux counts what the parent holds at the fork as the child's peak.
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command
from headprune.heads import HeadId, SiteId
from headprune.plans import HeadScores

LARGEST_RATIO = 1.3
LARGEST_LOOK_BYTES = 1_000_000_000
LONGEST_LOOK_SECONDS = 5.0
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes

LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}


class Child(NamedTuple):
    """What a process took."""

    seconds: float
    peak: int
    output: str


def measured(*command: str) -> Child:
    """Run a process to its end; its peak includes that of the processes it started itself."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *command],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
            ],
        )
        _pid, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        text, complaint = output.read(), errors.read()
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"memory: a process ended with {os.waitstatus_to_exitcode(status)}\n{complaint}")
    return Child(seconds, usage.ru_maxrss * _UNIT, text)


def settings_of(gigabytes: float, dtype: str) -> dict[str, int]:
    """Return the config of a Llama of about this size: its layers have 45 million parameters each."""
    numbers = gigabytes * 1e9 / (4 if dtype == "float32" else 2)
    return {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": max(1, round((numbers - 2 * 32000 * 2048) / 45_092_864)),
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }


def batches(sizes: dict[str, int], *, most: int) -> Iterator[list[str]]:
    """Yield names until their sizes come to about ``most``."""
    found: list[str] = []
    for name in sizes:
        found.append(name)
        if sum(sizes[name] for name in found) >= most:
            yield found
            found = []
    if found:
        yield found


def write_model(directory: Path, settings: dict[str, Any], dtype_name: str) -> None:
    """Write a random model in shards of at most 300 MB, one at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = getattr(torch, dtype_name)
    config = LlamaConfig(**settings, dtype=dtype_name, architectures=["LlamaForCausalLM"])
    config.save_pretrained(directory)
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in shapes.items()}
    shards = list(batches(sizes, most=min(300_000_000, sum(sizes.values()) // 3)))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.randn(shapes[name]).mul_(0.02).to(dtype) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def random_scores(settings: dict[str, int], *, fingerprint: str) -> HeadScores:
    """Return a random score for every head."""
    sites = [SiteId("", layer) for layer in range(settings["num_hidden_layers"])]
    heads = tuple(
        HeadId(site, head) for site in sites for head in range(settings["num_attention_heads"])
    )
    drawn = random.Random(0)
    values = tuple(drawn.random() for _ in heads)
    model = {"fingerprint": fingerprint}
    return HeadScores(method="random", heads=heads, values=values, n=0, seed=0, model=model)


def weights_bytes(directory: Path) -> int:
    """Return the size of a model's weights."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def in_memory(order: Mapping[str, Any]) -> dict[str, Any]:
    """Import, look at a model without memory, write another with scores of its heads, and prune it in memory.

    All in one process, the least first: a peak never falls, and every process would import the same anew.

    Returns:
        What was held at most after each, and how long it took.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import headprune as hp
    import headprune.workflows.prune
    from headprune.placement import fingerprint

    found: dict[str, Any] = {"imports": _peak()}
    config = LlamaConfig(**order["look"])
    start = time.perf_counter()
    with torch.device("meta"):
        giant = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    heads = len(hp.inspect(giant).heads)
    found["look"] = {"seconds": time.perf_counter() - start, "peak": _peak(), "heads": heads}

    source = Path(order["model"])
    write_model(source, order["settings"], order["dtype"])
    start = time.perf_counter()
    model = hp.load(source, device="cpu")
    scores = random_scores(order["settings"], fingerprint=fingerprint(model))
    Path(order["scores"]).write_text(scores.to_json(), encoding="utf-8")
    hp.prune(model, hp.plan(scores, hp.Constraints(keep=order["keep"]), anatomy=hp.inspect(model)))
    hp.save(model, order["out"])
    found["in_memory"] = {"seconds": time.perf_counter() - start, "peak": _peak()}
    return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def measure(
    place: Path, *, settings: Mapping[str, int], look: Mapping[str, int], dtype: str, keep: float
) -> dict[str, Any]:
    """Look at a model, write another and prune it in memory; then, in another process, prune it from file to file."""
    source, scores, out = place / "model", place / "scores.json", place / "streamed"
    order = {"settings": settings, "look": look, "dtype": dtype, "keep": keep}
    order |= {"model": str(source), "scores": str(scores), "out": str(place / "memory")}
    first = measured("-m", "benchmarks.memory.measure", json.dumps(order))
    words = ("--scores", str(scores), "--keep", str(keep), "--out", str(out))
    stream = measured("-m", "headprune", "prune", str(source), "--stream", *words)
    return {
        **json.loads(first.output.splitlines()[-1]),
        "stream": {"seconds": stream.seconds, "peak": stream.peak},
        "model_bytes": weights_bytes(source),
        "pruned_bytes": weights_bytes(out),
        "dtype": dtype,
        "shards": len(list(out.glob("*.safetensors"))),
    }


def show(found: Mapping[str, Any]) -> None:
    """Print what was measured."""
    size, look = found["model_bytes"], found["look"]
    pruned = found["pruned_bytes"] / 1e9
    print(
        f"model: {size / 1e9:.2f} GB ({found['dtype']}, {found['shards']} shards), pruned: {pruned:.2f} GB"
    )
    print(
        f"imports alone  peak {found['imports'] / 1e9:.2f} GB = {found['imports'] / size:.2f} x the model"
    )
    for label, name in (("--stream", "stream"), ("in memory", "in_memory")):
        peak, seconds = found[name]["peak"], found[name]["seconds"]
        print(
            f"{label:14} peak {peak / 1e9:.2f} GB = {peak / size:.2f} x the model, {seconds:.0f} s"
        )
    print(
        f"inspect: {look['seconds']:.2f} s without imports (limit {LONGEST_LOOK_SECONDS:g} s), "
        f"peak {look['peak'] / 1e9:.2f} GB (limit {LARGEST_LOOK_BYTES / 1e9:g} GB), {look['heads']} heads"
    )


def complaints(found: Mapping[str, Any]) -> list[str]:
    """Return a line for every limit that was passed."""
    lines = []
    if found["stream"]["peak"] > LARGEST_RATIO * found["model_bytes"]:
        lines.append(f"memory: --stream took more than {LARGEST_RATIO} x the model")
    look = found["look"]
    if look["seconds"] >= LONGEST_LOOK_SECONDS or look["peak"] >= LARGEST_LOOK_BYTES:
        lines.append("memory: looking took too long or too much (is the machine busy?)")
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where a limit was passed."""
    parser = command.parser("memory", __doc__, quick="Llamas of two layers; no limit counts")
    command.add_files(parser)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--keep", type=float, default=0.7)
    asked = command.read(parser, words)
    settings = TINY if asked.quick else settings_of(asked.gigabytes, asked.dtype)
    look = TINY if asked.quick else LLAMA_70B
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), settings=settings, look=look, dtype=asked.dtype, keep=asked.keep
        )
    show(found)
    if asked.json:
        command.write_json(asked.json, found)
    if asked.quick:
        print("A smoke run: these numbers mean nothing, and no limit counts.")
        return 0
    exceeded = complaints(found)
    for line in exceeded:
        print(line, file=sys.stderr)
    return 1 if exceeded else 0


if __name__ == "__main__":
    print(json.dumps(in_memory(json.loads(sys.argv[1]))))
