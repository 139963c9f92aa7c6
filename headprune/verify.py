"""The proofs that ``prune`` gives before it says done."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from headprune.batch import forward, main_output
from headprune.checkpoint import Route, fresh_process
from headprune.errors import ProofError

# Largest difference allowed between masked and pruned outputs, relative to their largest value (or 1, if that is larger).
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
_RELOAD_SECONDS = 600


class Proof(BaseModel):
    """One claim, what was measured, and whether that is within its limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    measured: float
    limit: float
    detail: str


@torch.no_grad()
def run(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the first output of the model (logits, or hidden states) on the CPU."""
    device = next(model.parameters()).device
    moved = {name: value.to(device) for name, value in inputs.items()}
    return main_output(forward(model, moved)).cpu()


def masked_equals_pruned(masked: Tensor, pruned: Tensor, *, rows: int) -> Proof:
    """Compare the outputs of the full model, heads masked, with those of the pruned model."""
    scale = max(1.0, float(masked.abs().max()))
    comparable = (
        masked.shape == pruned.shape
        and bool(masked.isfinite().all())
        and bool(pruned.isfinite().all())
    )
    difference = float((masked.float() - pruned.float()).abs().max()) if comparable else math.inf
    limit = _TOLERANCE.get(masked.dtype, 1e-5) * (scale if math.isfinite(scale) else 1.0)
    return Proof(
        name="masked == pruned",
        passed=difference <= limit,
        measured=difference,
        limit=limit,
        detail=f"largest difference of outputs on {rows} real rows",
    )


def parameters_add_up(
    *, before: int, removed: int, directory: Path, model: PreTrainedModel
) -> Proof:
    """Check that the plan's arithmetic, the model in memory and the file on disk agree."""
    after = sum(parameter.numel() for parameter in model.parameters())
    on_disk = _numbers_on_disk(directory)
    in_memory = _saved_numbers(model)
    off = max(abs(before - removed - after), abs(on_disk - in_memory))
    return Proof(
        name="parameters add up",
        passed=off == 0,
        measured=float(off),
        limit=0.0,
        detail=f"{before:,} - {removed:,} = {after:,}; {on_disk:,} numbers on disk",
    )


def _saved_numbers(model: PreTrainedModel) -> int:
    """Count the numbers a save writes: tied tensors once, persistent buffers too."""
    unique = {
        (tensor.data_ptr(), tensor.shape): tensor.numel()
        for tensor in model.state_dict().values()
        if tensor.numel()
    }
    return sum(unique.values())


def _numbers_on_disk(directory: Path) -> int:
    total = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


def reload_is_identical(
    model: PreTrainedModel,
    directory: Path,
    *,
    inputs: Mapping[str, Tensor],
    auto_class: str,
    route: Route,
) -> Proof:
    """Load ``directory`` in a fresh process without headprune, run it, and compare bit for bit with the model in memory."""
    expected = run(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_file(
            {name: value.cpu().contiguous() for name, value in inputs.items()}, place / "inputs"
        )
        job = {
            "directory": str(directory.absolute()),
            "auto_class": auto_class,
            "trust_remote_code": route == "remote-code",
            "inputs": str(place / "inputs"),
            "outputs": str(place / "outputs"),
            "threads": torch.get_num_threads(),
            "device": str(next(model.parameters()).device),
            "attn_implementation": model.config._attn_implementation,
        }
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        complaint, output = _run_fresh(place)
    measured = math.inf
    if output is not None and output.dtype == expected.dtype and output.shape == expected.shape:
        largest = float((output.float() - expected.float()).abs().max())
        measured = math.inf if math.isnan(largest) else largest
    how = "trust_remote_code=True" if route == "remote-code" else "no extra file"
    return Proof(
        name="reload is identical",
        passed=measured == 0 and not complaint,
        measured=measured,
        limit=0.0,
        detail=complaint or f"{auto_class}.from_pretrained in a fresh process, {how}",
    )


def insist(proofs: Sequence[Proof]) -> None:
    """Stop where a proof says no.

    Raises:
        ProofError: See above.
    """
    for proof in proofs:
        if not proof.passed:
            raise ProofError(
                f"the proof '{proof.name}' failed: {proof.measured:.3g} where {proof.limit:.3g} is allowed",
                where=proof.detail,
                hint="nothing was saved; please report the model type and the plan",
            )


def _run_fresh(place: Path) -> tuple[str, Tensor | None]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(place / "modules"),
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        child = subprocess.run(
            [sys.executable, "-P", str(fresh_process.__file__), str(place / "job.json")],
            capture_output=True,
            text=True,
            env=environment,
            cwd=place,
            stdin=subprocess.DEVNULL,
            timeout=_RELOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"loading took more than {_RELOAD_SECONDS} s", None
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or ["it ended without a word"]
        return f"loading failed: {lines[-1]}", None
    complaints: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    try:
        output = load_file(place / "outputs")["output"]
    except (OSError, SafetensorError, KeyError) as error:
        return f"no output came back: {error}", None
    return "; ".join(
        f"{name}: {', '.join(found[:3])}" for name, found in complaints.items()
    ), output
