"""How every command saves a model: into a temporary directory, proven, described, sealed, and then moved to its place."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.roles import Roles
from headprune.anatomy.clone import quiet, stock_class
from headprune.anatomy.inputs import example_inputs
from headprune.anatomy.sites import Anatomy
from headprune.artefact import LoadMethod, Proof
from headprune.batch import evaluating, forward, main_output
from headprune.config import RunSpec
from headprune.models.classes import auto_class_of, auto_classes
from headprune.models.find import ModelSource
from headprune.models.load import complaints
from headprune.models.manifest import (
    output_directory,
    refuse_source,
    refuse_unusable_output,
    write_manifest,
)
from headprune.models.save import MAX_SHARD_SIZE, write_model
from headprune.placement import count_parameters, input_device, weights_bytes
from headprune.plans import HeadScores, PruningPlan
from headprune.report.card import model_card
from headprune.results import Results
from headprune.verify import loads_afresh, parameters_add_up, reload_is_identical, require

PROOF_ROWS = 16
"""Rows on which masked == pruned and reload == memory are proven."""


@dataclass(frozen=True)
class Written:
    """A model that was written: how it loads, and what was proven of it."""

    loads_with: LoadMethod
    proofs: tuple[Proof, ...]


def finish(
    out: Path,
    *,
    overwrite: bool,
    write: Callable[[Path], Written],
    results: Callable[[Written, int], Results],
    documents: Callable[[Results], Mapping[str, str]],
) -> Results:
    """Make a directory that holds a model with what describes it, or nothing at all.

    Args:
        out: The directory.
        overwrite: Whether an earlier model of ours that lies there is replaced.
        write: Writes the model into a directory and proves it.
        results: Puts together what became of the model, from what was proven and the size of its weights in bytes.
        documents: Names and texts of the files that describe it.

    Raises:
        CheckpointError: The directory isn't empty, or a write failed; nothing is left half-written.
        ProofError: A proof said no; nothing was saved.
        UnprovenError: Memory ran out in a proof, not while it was written; what was written is kept beside ``out``.
    """
    with output_directory(out, overwrite=overwrite) as staging:
        written = write(staging)
        require(written.proofs)
        outcome = results(written, weights_bytes(staging))
        for name, text in documents(outcome).items():
            (staging / name).write_text(text, encoding="utf-8")
        write_manifest(staging)
    return outcome


@dataclass(frozen=True, eq=False)
class InMemory:
    """A model in memory that is to become a directory.

    Args:
        model: The model, pruned or not.
        anatomy: Its anatomy as it is now.
        source: The directory of the model that it was made from: files that the source needs are copied.
        tokenizer: The tokenizer that is saved; None stands for the source's own.
        splitter: The tokenizer that the saved one must split texts like; None where there is none.
        inputs: What the model and its reloaded twin are compared on; None stands for made-up inputs.
        auto_class: The class of transformers that loads it; None stands for the Auto class of the model's own class.
        parameters: How many parameters it had, and how many were removed; None stands for its current number.
        max_shard_size: Weights larger than this are split over several files.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    source: Path | None
    tokenizer: Any = None
    splitter: Any = None
    inputs: Mapping[str, Tensor] | None = None
    auto_class: str | None = None
    parameters: tuple[int, int] | None = None
    max_shard_size: str = MAX_SHARD_SIZE

    def write(self, directory: Path) -> Written:
        """Write all that a load needs, and prove it: in a fresh process where a class of transformers loads it."""
        route = write_model(
            self.model,
            directory,
            anatomy=self.anatomy,
            tokenizer=self.tokenizer,
            source=self.source,
            max_shard_size=self.max_shard_size,
        )
        before, removed = self.parameters or (count_parameters(self.model), 0)
        sums = parameters_add_up(
            before=before, removed=removed, directory=directory, model=self.model
        )
        return Written(route, (*self._reloaded(directory, route), sums))

    def _reloaded(self, directory: Path, route: LoadMethod) -> tuple[Proof, ...]:
        kind = stock_class(self.model)
        if route == "remote-code" and kind.config_class and not auto_classes(kind.config_class):
            return ()  # headprune.load alone knows such a class
        auto_class = self.auto_class or auto_class_of(kind)
        known = frozenset[str]() if self.inputs else _absent(self.model)
        splitter = self.splitter or self.tokenizer
        with evaluating(self.model):
            inputs = self.inputs or _steady_inputs(self.model)
            if inputs is None:
                return (
                    loads_afresh(
                        directory,
                        auto_class=auto_class,
                        route=route,
                        known=known,
                        tokenizer=splitter,
                    ),
                )
            return (
                reload_is_identical(
                    self.model,
                    directory,
                    inputs=inputs,
                    auto_class=auto_class,
                    route=route,
                    tokenizer=splitter,
                    known=known,
                ),
            )


def save_described(
    saved: InMemory,
    out: Path,
    *,
    plan: PruningPlan | None,
    scores: HeadScores | None,
    overwrite: bool,
) -> LoadMethod:
    """Save a model with what its plan and scores tell of it; nothing was measured. Return how it loads."""
    model, home = saved.model, saved.source
    removed = plan.remove if plan else ()
    saves = (plan.budget.get("saves") or {}) if plan else {"parameters": 0}
    size, kept = count_parameters(model), len(saved.anatomy.heads)

    def results(written: Written, weights: int) -> Results:
        return Results(
            heads=(kept + len(removed), kept),
            parameters=(size + saves["parameters"] if "parameters" in saves else None, size),
            proofs=written.proofs,
            weights_bytes=((weights_bytes(home) or None) if home else None, weights),
            removed=tuple(map(str, removed)),
            roles=plan.roles if plan else None,
            loads_with=written.loads_with,
            auto_class=auto_class_of(stock_class(model)),
            calibration={**scores.data, "method": scores.method, "n": scores.n} if scores else {},
        )

    def documents(results: Results) -> dict[str, str]:
        source = ModelSource(home.name, home, None, model.config) if home else None
        is_told = plan is not None or scores is not None
        return documents_of(results, plan, scores, source=source) if is_told else {}

    write = saved.write
    done = finish(out, overwrite=overwrite, write=write, results=results, documents=documents)
    return done.loads_with


def documents_of(
    results: Results,
    plan: PruningPlan | None,
    scores: HeadScores | None,
    *,
    source: ModelSource | None,
    settings: str | None = None,
    roles: Roles | None = None,
) -> dict[str, str]:
    """Return the files that describe a model, by name; without a plan there is no card."""
    texts = {
        "scores.json": scores.to_json() if scores else None,
        "roles.json": roles.to_json() if roles else None,
        "plan.json": plan.to_json() if plan else None,
        "results.json": results.to_json(),
        "headprune.yaml": settings,
        "README.md": model_card(results, plan, source=source) if plan else None,
    }
    return {name: text for name, text in texts.items() if text is not None}


def _absent(model: PreTrainedModel) -> frozenset[str]:
    """Return load warnings that the in-memory model also has, such as a missing pooler."""
    try:
        with quiet(), torch.device("meta"):
            whole = stock_class(model)(copy.deepcopy(model.config))
    except (ValueError, TypeError, RuntimeError, AttributeError):  # none can be built that way
        return frozenset()
    names = whole.state_dict().keys() - model.state_dict().keys()
    return complaints({"missing_keys": names})


def _steady_inputs(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Return inputs with deterministic outputs; None if there are none.

    In half precision, kernels may round differently, and loading recomputes tables that were cast in memory.
    """
    if model.dtype != torch.float32 or model.config.dtype not in (torch.float32, "float32", None):
        return None
    device = input_device(model)
    if device.type == "meta":
        return None
    with quiet():
        examples = example_inputs(model)
    inputs = {name: value for name, value in examples.items() if isinstance(value, Tensor)}
    moved = {name: value.to(device) for name, value in inputs.items()}
    try:
        with torch.no_grad(), quiet():
            outputs = [main_output(forward(model, moved)), model(**moved)[0]]
    except Exception:  # noqa: BLE001 - models raise whatever they like at inputs that aren't theirs
        return None
    same = all(isinstance(output, Tensor) for output in outputs) and torch.equal(*outputs)
    return inputs if same else None


def refuse_output(run: RunSpec, *, source: Path) -> None:
    """Refuse an output directory that holds the source, or whose disk is too small.

    Raises:
        CheckpointError: See above.
    """
    out = Path(run.out or "")
    refuse_source(out, source)
    refuse_unusable_output(out, overwrite=run.overwrite, needed_bytes=weights_bytes(source))
