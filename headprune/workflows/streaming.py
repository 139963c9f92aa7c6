"""``prune --stream``: from file to file, for models that memory can't hold; quality isn't measured, everything else is proven."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.anatomy.clone import pruning_record, stock_class
from headprune.artefact import read_artefact
from headprune.config import Recipe
from headprune.errors import ConfigError
from headprune.models.classes import auto_class_of
from headprune.models.describe import LoadMethod, describe
from headprune.models.facts import available_memory, fingerprint_of, weights_bytes
from headprune.models.find import ModelSource
from headprune.models.load import load_model, load_shapes
from headprune.models.manifest import refuse_unusable_output
from headprune.models.save import write_model, write_side_files
from headprune.models.shards import count_stored, stored_tensors
from headprune.models.stream import Cut, find_cuts, names_in_memory, rewrite
from headprune.models.tokenizer import tokenizer_of
from headprune.placement import count_parameters
from headprune.planning import check_constraints, cost_model, savings
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results
from headprune.runs import named_scores, scores_file
from headprune.subject import Progress, find_model, origin_of
from headprune.surgery import cut
from headprune.verify import (
    Proof,
    files_are_exact,
    loads_afresh,
    numbers_add_up,
    parameters_add_up,
    require,
)
from headprune.workflows.commands import anatomy_of, refuse_output
from headprune.workflows.course import constraints_of, is_tolerant, method_of
from headprune.workflows.finish import Written, documents_of, finish
from headprune.workflows.planning import choose, with_named_heads
from headprune.workflows.record import note_where, record_of
from headprune.workflows.scores import compare

Show = Callable[[HeadScores, PruningPlan], None]


@dataclass(frozen=True)
class _Prospect:
    """A model that was looked at without its numbers, and what is to become of it."""

    recipe: Recipe
    source: ModelSource
    model: PreTrainedModel
    anatomy: Anatomy
    complaints: frozenset[str]
    scores: HeadScores
    plan: PruningPlan

    @property
    def pad(self) -> bool:
        """Whether removed heads may stay as dead weight."""
        return self.plan.is_padded

    @property
    def parameters_removed(self) -> int:
        """What the plan takes, by its own arithmetic."""
        removed = self.plan.remove
        return savings(self.model, self.anatomy, removed=removed, pad=self.pad).parameters


def is_too_large(recipe: Recipe, *, progress: Progress) -> bool:
    """Whether scores are given and the weights are larger than the memory that is left; then says so."""
    free = available_memory()
    if recipe.scores is None or recipe.dtype != "auto" or free is None:
        return False
    size = weights_bytes(find_model(recipe).directory)
    if size <= free:
        return False
    progress.notify(
        f"the weights have {size / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are left: "
        "pruning from file to file, as --stream does"
    )
    return True


def plan_unloaded(recipe: Recipe, *, progress: Progress, show: Show) -> PruningPlan:
    """Choose the heads that would go, from scores that are there; no weights are loaded and nothing is written."""
    return _look(recipe, progress=progress, show=show).plan


def prune_unloaded(recipe: Recipe, *, progress: Progress, show: Show) -> Results:
    """Cut heads out of a model on disk, one tensor at a time, prove it, and save; no data is read.

    Where the names in the files don't allow it, the model is loaded all the same, and that is said.

    Raises:
        ConfigError: No scores are named, or another dtype is asked for.
        ProofError: A proof said no; nothing was saved.
    """
    out = Path(recipe.out or "")
    refuse_unusable_output(out, overwrite=recipe.overwrite, notify=progress.notify)
    prospect = _look(recipe, progress=progress, show=show)
    source = prospect.source.directory
    refuse_output(recipe, source=source)
    smaller = copy.deepcopy(prospect.model)
    after = cut(smaller, prospect.anatomy, remove=prospect.plan.remove, pad=prospect.pad)
    cuts = find_cuts(prospect.model, stored_tensors(source), before=prospect.anatomy, after=after)
    streamed = not isinstance(cuts, str)
    auto_class = auto_class_of(stock_class(smaller))

    def write(staging: Path) -> Written:
        if isinstance(cuts, str):
            progress.notify(f"loading the whole model: {cuts}")
            route, *proofs = _load_and_cut(prospect, staging)
        else:
            progress.notify(f"cutting {len(cuts)} tensors, copying the others")
            route, *proofs = _stream(prospect, smaller, staging, after=after, cuts=cuts)
        require(proofs)
        progress.notify("loading it in a fresh process")
        loads = loads_afresh(
            staging,
            auto_class=auto_class,
            route=route,
            known=prospect.complaints,
            tokenizer=tokenizer_of(prospect.source),
        )
        return Written(route, (*proofs, loads))

    def results(written: Written, size: int) -> Results:
        return Results(
            heads=(len(prospect.anatomy.heads), len(after.heads)),
            parameters=(count_parameters(prospect.model), count_parameters(smaller)),
            proofs=written.proofs,
            weights_bytes=(weights_bytes(source), size),
            removed=tuple(str(head) for head in prospect.plan.remove),
            loads_with=written.loads_with,
            auto_class=auto_class,
            streamed=streamed,
            calibration=_calibration(prospect.scores),
        )

    def documents(results: Results) -> dict[str, str]:
        note_where(recipe, results=results, model=prospect.scores.model)
        return documents_of(
            results,
            prospect.plan,
            prospect.scores,
            source=prospect.source,
            settings=record_of(recipe),
        )

    outcome = finish(
        out, overwrite=recipe.overwrite, write=write, results=results, documents=documents
    )
    progress.notify(f"quality was not measured: headprune eval {out} --data FILE")
    return outcome


def _stream(
    prospect: _Prospect,
    smaller: PreTrainedModel,
    staging: Path,
    *,
    after: Anatomy,
    cuts: Sequence[Cut],
) -> tuple[LoadMethod, Proof, Proof]:
    """Write the smaller model from file to file, and read it back."""
    source = prospect.source.directory
    rewrite(source, staging, cuts=cuts)
    _note_origin(prospect, smaller)
    description = describe(smaller, after)
    write_side_files(smaller, staging, description, source=prospect.source.root)
    sums = numbers_add_up(
        before=count_parameters(prospect.model),
        after=count_parameters(smaller),
        removed=prospect.parameters_removed,
        files=(count_stored(source), count_stored(staging)),
    )
    return description.load_method, files_are_exact(source, staging, cuts=cuts), sums


def _load_and_cut(prospect: _Prospect, staging: Path) -> tuple[LoadMethod, Proof]:
    """Do the same in memory."""
    source = prospect.source
    # What is to be said of it was said when its shapes were loaded.
    model = load_model(source, auto_class=None, device="cpu", notify=lambda text: None)
    before = count_parameters(model)
    after = cut(model, prospect.anatomy, remove=prospect.plan.remove, pad=prospect.pad)
    _note_origin(prospect, model)
    route = write_model(model, staging, anatomy=after, source=source.root)
    removed = prospect.parameters_removed
    return route, parameters_add_up(before=before, removed=removed, directory=staging, model=model)


def _refuse_what_runs_the_model(recipe: Recipe) -> None:
    """Refuse settings that need a model that is loaded.

    Raises:
        ConfigError: There is one.
    """
    score = "headprune score MODEL --run RUN where it fits, then --stream --scores RUN/scores.json"
    another = "use another budget: --target-flops 0.9, for example"
    dtype = f"--dtype asks for {recipe.dtype}, and tensors are copied as they are"
    reconstructs = recipe.reconstruct not in (None, "none") or recipe.allow_bias
    asked = (
        (recipe.scores is None, "no scores are named", "", score),
        (recipe.dtype != "auto", dtype, ", --dtype", "leave --dtype out"),
        (
            reconstructs,
            "reconstruction runs the model",
            ", --reconstruct",
            "leave out --reconstruct and --allow-bias",
        ),
        (recipe.target_latency is not None, "latency is measured", ", --target-latency", another),
        (is_tolerant(recipe), "how far the metric drops is measured", ", --max-drop", another),
    )
    for is_asked, what, option, hint in asked:
        if is_asked:
            raise ConfigError(
                f"{what}; from file to file no model is loaded",
                where=f"--stream{option}",
                hint=hint,
            )


def _look(recipe: Recipe, *, progress: Progress, show: Show) -> _Prospect:
    _refuse_what_runs_the_model(recipe)
    path = scores_file(str(recipe.scores), method=method_of(recipe))
    constraints = constraints_of(recipe)
    source = find_model(recipe)
    model, complaints = load_shapes(source, notify=progress.notify)
    progress.notify(f"model {recipe.model} ({model.config.model_type}), its weights left on disk")
    anatomy = anatomy_of(model, name=source.name, progress=progress)
    constraints = with_named_heads(model, anatomy, constraints, progress=progress)
    costs = cost_model(model, anatomy, constraints=constraints, batches=tuple)
    check_constraints(anatomy, constraints, costs=costs)
    scores = _scores(path, source, model, progress=progress)
    compare(scores, recipe, path=path, metric=None, rows=None, progress=progress)
    plan = choose(model, anatomy, scores, constraints=constraints, costs=costs, progress=progress)
    show(scores, plan)
    return _Prospect(recipe, source, model, anatomy, complaints, scores, plan)


def _scores(
    path: Path, source: ModelSource, model: PreTrainedModel, *, progress: Progress
) -> HeadScores:
    """Return the scores, which must be of this model where that can be told from its files."""
    any_model = read_artefact(HeadScores, path)
    if "fingerprint" not in any_model.model:
        return any_model
    mine = _fingerprint(source, model, dtype=any_model.model.get("dtype"))
    if mine is None:
        progress.notify(
            "careful: some weights are called otherwise in memory than in the files, "
            "so whether the scores are of this very model isn't checked"
        )
        return any_model
    return named_scores(path, fingerprint=mine)


def _fingerprint(source: ModelSource, model: PreTrainedModel, *, dtype: Any) -> str | None:
    """Return the fingerprint that the model would have in memory; None where its files alone don't tell.

    Args:
        source: Where the files are.
        model: Names, shapes and dtypes.
        dtype: The dtype that it was scored in, should it not be its own.
    """
    stored = {tensor.name: tensor for tensor in stored_tensors(source.directory)}
    places = {name: place for place, name in names_in_memory(model, stored).items()}
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    found = {
        name: next((places[same] for same in names[parameter] if same in places), None)
        for name, parameter in model.named_parameters()
    }
    cast = getattr(torch, str(dtype), None) if str(dtype) != _dtype_name(model.dtype) else None

    def parameters() -> Iterator[tuple[str, Tensor, torch.dtype]]:
        for name, parameter in sorted(model.named_parameters()):
            kind = cast if isinstance(cast, torch.dtype) else parameter.dtype
            yield name, stored[str(found[name])].read(), kind

    return None if None in found.values() else fingerprint_of(parameters())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _note_origin(prospect: _Prospect, smaller: PreTrainedModel) -> None:
    record = pruning_record(smaller.config)
    origin = {
        **origin_of(prospect.source),
        "fingerprint": prospect.scores.model.get("fingerprint"),
    }
    smaller.config.headprune = {**record, "source": record.get("source") or origin}


def _calibration(scores: HeadScores) -> dict[str, Any]:
    return {**scores.data, "method": scores.method, "n": scores.n}
