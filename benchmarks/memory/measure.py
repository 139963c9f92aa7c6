"""How much memory pruning and looking take, in processes of their own.

A random Llama of about 2 GB is pruned from file to file (peak <= 1.3 x its size, or exit 1) and in memory, and a 70B Llama is
looked at from its config. Takes a few minutes and 6 GB of disk in the temporary folder.

This process itself stays small and imports no torch: Linux counts what the parent holds at the fork as the child's peak.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headprune.heads import HeadId, SiteId
from headprune.plans import HeadScores

LARGEST_RATIO = 1.3
LARGEST_LOOK_BYTES = 1_000_000_000
LONGEST_LOOK_SECONDS = 5.0

IN_MEMORY = """
import json, sys
import headprune as hp
model = hp.load(sys.argv[1], device="cpu")
hp.prune(model, json.load(open(sys.argv[2]))["remove"])
hp.save(model, sys.argv[3])
"""
IMPORTS = "import torch, transformers.models.llama, headprune.workflows.prune, headprune.api"
LOOK = """
import json, sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM
import headprune as hp
hp.inspect
config = LlamaConfig(**json.loads(sys.argv[1]))
start = time.perf_counter()
with torch.device("meta"):
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
heads = len(hp.inspect(model).heads)
print(json.dumps({"seconds": time.perf_counter() - start, "heads": heads}))
"""
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
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
    unit = 1 if sys.platform == "darwin" else 1024
    return Child(seconds, usage.ru_maxrss * unit, text)


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


def write_model(directory: Path, settings: dict[str, Any], dtype_name: str, scores: Path) -> None:
    """Write a random model in shards of 300 MB, one at a time, and a random score for every head of it."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from headprune.models.load import load
    from headprune.placement import fingerprint

    dtype = getattr(torch, dtype_name)
    config = LlamaConfig(**settings, dtype=dtype_name, architectures=["LlamaForCausalLM"])
    config.save_pretrained(directory)
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in shapes.items()}
    shards = list(batches(sizes, most=300_000_000))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.randn(shapes[name]).mul_(0.02).to(dtype) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    write_scores(scores, settings, fingerprint=fingerprint(load(directory, device="cpu")))


def write_scores(path: Path, settings: dict[str, int], *, fingerprint: str) -> None:
    """Write a random score for every head."""
    sites = [SiteId("", layer) for layer in range(settings["num_hidden_layers"])]
    heads = tuple(
        HeadId(site, head) for site in sites for head in range(settings["num_attention_heads"])
    )
    drawn = random.Random(0)
    values = tuple(drawn.random() for _ in heads)
    model = {"fingerprint": fingerprint}
    made = HeadScores(method="random", heads=heads, values=values, n=0, seed=0, model=model)
    path.write_text(made.to_json())


def weights_bytes(directory: Path) -> int:
    """Return the size of a model's weights."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def prune_both_ways(place: Path, *, gigabytes: float, dtype: str, keep: float) -> bool:
    """Prune from file to file and in memory; returns whether the first stayed within its limit."""
    source, scores, out = place / "model", place / "scores.json", place / "streamed"
    settings = settings_of(gigabytes, dtype)
    writer = multiprocessing.get_context("spawn").Process(
        target=write_model, args=(source, settings, dtype, scores)
    )
    writer.start()
    writer.join()
    if writer.exitcode != 0:
        sys.exit("memory: the model couldn't be written")
    size = weights_bytes(source)
    floor = measured("-c", IMPORTS)
    words = ("--scores", str(scores), "--keep", str(keep), "--out", str(out))
    stream = measured("-m", "headprune", "prune", str(source), "--stream", *words)
    memory = measured("-c", IN_MEMORY, str(source), str(out / "plan.json"), str(place / "memory"))
    shards = len(list(out.glob("*.safetensors")))
    print(
        f"model: {size / 1e9:.2f} GB ({dtype}, {shards} shards), pruned: {weights_bytes(out) / 1e9:.2f} GB"
    )
    for label, child in (("imports alone", floor), ("--stream", stream), ("in memory", memory)):
        print(
            f"{label:14} peak {child.peak / 1e9:.2f} GB = {child.peak / size:.2f} x the model, {child.seconds:.0f} s"
        )
    return stream.peak <= LARGEST_RATIO * size


def look() -> bool:
    """Look at a 70B Llama without memory; returns whether it was quick and small."""
    child = measured("-c", LOOK, json.dumps(LLAMA_70B))
    found = json.loads(child.output)
    print(
        f"inspect, 70B Llama: {found['seconds']:.2f} s without imports (limit {LONGEST_LOOK_SECONDS:g} s), "
        f"peak {child.peak / 1e9:.2f} GB (limit {LARGEST_LOOK_BYTES / 1e9:g} GB), {found['heads']} heads"
    )
    return found["seconds"] < LONGEST_LOOK_SECONDS and child.peak < LARGEST_LOOK_BYTES


def main() -> None:
    """Measure, print, and leave with 1 where a limit was passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: 20 MB, and no limit counts"
    )
    said = parser.parse_args()
    if said.quick:
        said.gigabytes = 0.02
    with tempfile.TemporaryDirectory() as folder:
        small = prune_both_ways(
            Path(folder), gigabytes=said.gigabytes, dtype=said.dtype, keep=said.keep
        )
    quick = look()
    if not small:
        print(f"memory: --stream took more than {LARGEST_RATIO} x the model", file=sys.stderr)
    if not quick:
        print("memory: looking took too long or too much (is the machine busy?)", file=sys.stderr)
    sys.exit(0 if said.quick or (small and quick) else 1)
