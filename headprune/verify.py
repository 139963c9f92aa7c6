"""The proofs that ``prune`` gives before it says done."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy
from headprune.artefact import LoadMethod, Proof
from headprune.batch import asks_for_padding, forward, main_output
from headprune.errors import MemoryLimitError, ProofError, UnprovenError, is_out_of_memory
from headprune.models.fresh import load_afresh
from headprune.models.stream import Cut, count_stored, differing, stored_tensors, wrong_cuts
from headprune.models.tokenizer import awkward_ids
from headprune.passes import Parts, halves_of_inputs
from headprune.placement import count_parameters, input_device, moved_away

_OUTPUTS = "outputs of the model on real rows"
# Largest difference allowed between masked and pruned outputs, relative to their largest value (or 1, if that is larger).
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@contextmanager
def proving(claim: str) -> Iterator[None]:
    """Say of a proof that memory runs out in that it could not be run: it has not said no.

    Raises:
        UnprovenError: Memory ran out.
    """
    try:
        yield
    except (MemoryLimitError, RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryLimitError) or is_out_of_memory(error)):
            raise
        raise UnprovenError(
            f"the proof '{claim}' could not be run: {str(getattr(error, 'what', error)) or 'memory ran out'}",
            where=claim,
            hint="run it again with more free memory, or on another device",
        ) from error


def run(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the first output of the model (logits, or hidden states) on the CPU; part by part, where memory runs out.

    Raises:
        UnprovenError: Memory ran out on a single row.
    """
    parts = Parts[Mapping[str, Tensor]](_OUTPUTS, halves_of_inputs)
    with proving(_OUTPUTS):
        return torch.cat(parts.run(inputs, partial(_output, model)))


@torch.no_grad()
def _output(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    device = input_device(model)
    moved = {name: value.to(device) for name, value in inputs.items()}
    return main_output(forward(model, moved)).cpu()


def _align(model: PreTrainedModel) -> None:
    """Move weights to multiples of 64 bytes, as the fresh process does: where files put them, products may round otherwise."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


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


def merged_equals_adapted(adapted: Tensor, merged: Tensor, *, rows: int) -> Proof:
    """Compare the outputs under adapters with those of the weights that the adapters were merged into."""
    proof = masked_equals_pruned(adapted, merged, rows=rows)
    return proof.model_copy(update={"name": "merged == adapters"})


def heads_are_the_same(before: Anatomy, after: Anatomy) -> Proof:
    """Check that every attention has the very heads that it had, and the same dead weight."""
    sites = [
        {site.id: (site.heads, site.padding) for site in anatomy.sites}
        for anatomy in (before, after)
    ]
    off = [site for site in {**sites[0], **sites[1]} if sites[0].get(site) != sites[1].get(site)]
    fine = f"{len(after.heads)} heads in {len(after.sites)} attentions, as before"
    return nothing_wrong("same heads", list(map(str, off)), fine)


def nothing_wrong(name: str, wrong: Sequence[str], fine: str) -> Proof:
    """Return a proof that nothing is wrong, which tells ``fine`` then."""
    detail = "; ".join(wrong[:3]) or fine
    return Proof(name=name, passed=not wrong, measured=float(len(wrong)), limit=0.0, detail=detail)


@proving("parameters add up")
def parameters_add_up(
    *, before: int, removed: int, directory: Path, model: PreTrainedModel
) -> Proof:
    """Check that the plan's arithmetic, the model in memory and the file on disk agree."""
    return numbers_add_up(
        before=before,
        after=count_parameters(model),
        removed=removed,
        on_disk=count_stored(directory),
        expected=_saved_numbers(model),
    )


def _saved_numbers(model: PreTrainedModel) -> int:
    """Count the numbers a save writes: tied tensors once, persistent buffers too."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    unique = {
        # Weights that wait elsewhere have no address: those are told apart by what they are tied to.
        tied.get(name, name)
        if tensor.is_meta
        else (tensor.data_ptr(), tensor.shape): tensor.numel()
        for name, tensor in model.state_dict().items()
        if tensor.numel()
    }
    return sum(unique.values())


@proving("reload is identical")
def reload_is_identical(
    model: PreTrainedModel,
    directory: Path,
    *,
    inputs: Mapping[str, Tensor],
    auto_class: str,
    route: LoadMethod,
    tokenizer: Any = None,
    known: Collection[str] = (),
) -> Proof:
    """Load ``directory`` in a fresh process without headprune, run it, and compare bit for bit with the model in memory.

    Its tokenizer must split awkward texts as ``tokenizer`` does. Complaints that are known are none.

    The process runs on the model's device, and meanwhile the model waits in CPU memory: there is never room needed for two there.
    Where memory runs out, both run on fewer rows: in parts, a forward needn't round alike.

    Raises:
        UnprovenError: The process ran out of memory or time, or was killed.
    """
    parts = Parts[Mapping[str, Tensor]](_OUTPUTS, halves_of_inputs)
    if asks_for_padding(model, inputs):  # of a stranger, who is to run it as it is
        inputs = {name: value[:1] for name, value in inputs.items()}
    _align(model)
    with proving(_OUTPUTS):
        inputs, expected = parts.largest(inputs, partial(_output, model))
    placed = getattr(model, "hf_device_map", None) or {"": str(input_device(model))}
    job = {**_job(directory, auto_class, route), "device_map": placed}
    job["attn_implementation"] = model.config._attn_implementation
    with proving(_OUTPUTS), moved_away(model):
        complaints, output = load_afresh(job, inputs, ids=awkward_ids(tokenizer))
    complaint = "; ".join([line for line in complaints if line not in known][:3])
    measured = math.inf
    if output is not None and output.dtype == expected.dtype and output.shape == expected.shape:
        largest = float((output.float() - expected.float()).abs().max())
        measured = math.inf if math.isnan(largest) else largest
    return Proof(
        name="reload is identical",
        passed=measured == 0 and not complaint,
        measured=measured,
        limit=0.0,
        detail=complaint or f"{auto_class}.from_pretrained in a fresh process, {_how(route)}",
    )


def _job(directory: Path, auto_class: str, route: LoadMethod) -> dict[str, Any]:
    return {
        "directory": str(directory.absolute()),
        "auto_class": auto_class,
        "trust_remote_code": route == "remote-code",
        "threads": torch.get_num_threads(),
        "device_map": {"": "meta"},
        "attn_implementation": None,
    }


def _how(route: LoadMethod) -> str:
    return "trust_remote_code=True" if route == "remote-code" else "no extra file"


def require(proofs: Sequence[Proof]) -> None:
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


@proving("loads in a fresh process")
def loads_afresh(
    directory: Path,
    *,
    auto_class: str,
    route: LoadMethod,
    known: Collection[str],
    tokenizer: Any = None,
) -> Proof:
    """Load names and shapes of ``directory`` in a fresh process without headprune, on the meta device: no number is read.

    Args:
        directory: The model.
        auto_class: The class of transformers that loads it.
        route: How.
        known: What loading the source complained of already (a tensor that the model has no use for, say).
        tokenizer: Splits texts as the directory's must.
    """
    complaints, _none = load_afresh(_job(directory, auto_class, route), ids=awkward_ids(tokenizer))
    new = [line for line in complaints if line not in known]
    fine = f"{auto_class}.from_pretrained, {_how(route)}: every name and shape is there, none is left over"
    return nothing_wrong("loads in a fresh process", new, fine)


@proving("files are exact")
def files_are_exact(source: Path, directory: Path, *, cuts: Sequence[Cut]) -> Proof:
    """Read both directories, tensor by tensor: what wasn't cut is the same bit for bit, what was cut is the rows that stay."""
    old = {stored.name: stored for stored in stored_tensors(source)}
    new = {stored.name: stored for stored in stored_tensors(directory)}
    cut = {item.name for item in cuts}
    wrong = [
        *wrong_cuts(cuts, before=old, after=new),
        *differing((stored for name, stored in old.items() if name not in cut), new),
        *(name for name in new if name not in old),
    ]
    fine = (
        f"{len(old) - len(cut)} tensors are the source's bit for bit, {len(cut)} its rows that stay"
    )
    return nothing_wrong("files are exact", wrong, fine)


def numbers_add_up(*, before: int, after: int, removed: int, on_disk: int, expected: int) -> Proof:
    """Check that the plan's arithmetic, the numbers of parameters and those in the files agree."""
    off = max(abs(before - removed - after), abs(on_disk - expected))
    return Proof(
        name="parameters add up",
        passed=off == 0,
        measured=float(off),
        limit=0.0,
        detail=f"{before:,} - {removed:,} = {after:,}; {on_disk:,} numbers on disk",
    )
