"""``prune --stream``: from file to file, for models that memory can't hold; quality isn't measured, everything else is proven."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.roles import Roles
from headprune.anatomy.clone import pruning_record, stock_class
from headprune.anatomy.sites import Anatomy
from headprune.artefact import LoadMethod, Proof, read_artefact
from headprune.config import Settings
from headprune.config.checks import NO_ROLES, check_roles
from headprune.errors import ConfigError
from headprune.models.classes import auto_class_of
from headprune.models.describe import describe
from headprune.models.find import ModelSource
from headprune.models.load import load_model, load_shapes
from headprune.models.manifest import refuse_unusable_output
from headprune.models.save import write_model, write_side_files
from headprune.models.stream import (
    Cut,
    count_stored,
    find_cuts,
    names_in_memory,
    rewrite,
    stored_tensors,
)
from headprune.models.tokenizer import tokenizer_of
from headprune.passes import Progress
from headprune.placement import available_memory, count_parameters, fingerprint_of, weights_bytes
from headprune.planning.costs import cost_model, savings
from headprune.planning.plan import with_roles
from headprune.planning.problem import check_constraints
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Results
from headprune.runs import named_scores, scores_file
from headprune.surgery.cut import cut
from headprune.verify import (
    files_are_exact,
    loads_afresh,
    numbers_add_up,
    parameters_add_up,
    require,
)
from headprune.workflows.finish import Written, documents_of, finish, refuse_output
from headprune.workflows.plan import Show, choose
from headprune.workflows.record import note_where, record_of
from headprune.workflows.roles import roles_by_name
from headprune.workflows.score import compare
from headprune.workflows.session import find_model, origin_of, proven_anatomy
from headprune.workflows.stepwise import method_of, with_protected_heads


@dataclass(frozen=True)
class _OnDisk:
    """A model of which only names and shapes were read, and its plan."""

    settings: Settings
    progress: Progress
    source: ModelSource
    model: PreTrainedModel
    anatomy: Anatomy
    complaints: frozenset[str]
    scores: HeadScores
    plan: PruningPlan
    roles: Roles | None

    @property
    def pad(self) -> bool:
        """Whether removed heads may stay as dead weight."""
        return self.plan.is_padded

    @property
    def parameters_removed(self) -> int:
        """What the plan removes, by its own arithmetic."""
        removed = self.plan.remove
        return savings(self.model, self.anatomy, removed=removed, pad=self.pad).parameters


def is_too_large(settings: Settings, *, progress: Progress) -> bool:
    """Whether scores are given and the weights are larger than the free memory; if so, it is reported."""
    free = available_memory()
    if settings.run.scores is None or settings.model.dtype != "auto" or free is None:
        return False
    size = weights_bytes(find_model(settings.model).directory)
    if size <= free:
        return False
    progress.notify(
        f"the weights have {size / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are left: "
        "pruning from file to file, as `stream` does"
    )
    return True


def plan_streamed(settings: Settings, *, progress: Progress, show: Show) -> PruningPlan:
    """Choose the heads that would be removed, from scores that are there; no weights are loaded and nothing is written."""
    return _look(settings, progress=progress, show=show).plan


def prune_streamed(settings: Settings, *, progress: Progress, show: Show) -> Results:
    """Cut heads out of a model on disk, one tensor at a time, prove it, and save; no data is read.

    If the names in the files don't allow it, the model is loaded after all, and that is reported.

    Raises:
        ConfigError: No scores are named, or another dtype is asked for.
        ProofError: A proof said no; nothing was saved.
    """
    out, overwrite = Path(settings.run.out or ""), settings.run.overwrite
    refuse_unusable_output(out, overwrite=overwrite, notify=progress.notify)
    on_disk = _look(settings, progress=progress, show=show)
    source = on_disk.source.directory
    refuse_output(settings.run, source=source)
    smaller = copy.deepcopy(on_disk.model)
    after = cut(smaller, on_disk.anatomy, remove=on_disk.plan.remove, pad=on_disk.pad)
    cuts = find_cuts(on_disk.model, stored_tensors(source), before=on_disk.anatomy, after=after)
    scores, plan, auto_class = on_disk.scores, on_disk.plan, auto_class_of(stock_class(smaller))

    def write(staging: Path) -> Written:
        if isinstance(cuts, str):
            progress.notify(f"loading the whole model: {cuts}")
            route, *proofs = _load_and_cut(on_disk, staging)
        else:
            progress.notify(f"cutting {len(cuts)} tensors, copying the others")
            route, *proofs = _stream(on_disk, smaller, staging, after=after, cuts=cuts)
        require(proofs)
        progress.notify("loading it in a fresh process")
        known, tokenizer = on_disk.complaints, tokenizer_of(on_disk.source)
        loads = loads_afresh(
            staging, auto_class=auto_class, route=route, known=known, tokenizer=tokenizer
        )
        return Written(route, (*proofs, loads))

    def results(written: Written, size: int) -> Results:
        return Results(
            heads=(len(on_disk.anatomy.heads), len(after.heads)),
            parameters=(count_parameters(on_disk.model), count_parameters(smaller)),
            proofs=written.proofs,
            weights_bytes=(weights_bytes(source), size),
            removed=tuple(map(str, plan.remove)),
            roles=plan.roles,
            loads_with=written.loads_with,
            auto_class=auto_class,
            streamed=not isinstance(cuts, str),
            calibration={**scores.data, "method": scores.method, "n": scores.n},
        )

    def documents(results: Results) -> dict[str, str]:
        note_where(settings, results=results, model=scores.model)
        record = record_of(settings)
        return documents_of(
            results, plan, scores, source=on_disk.source, settings=record, roles=on_disk.roles
        )

    outcome = finish(out, overwrite=overwrite, write=write, results=results, documents=documents)
    progress.notify(f"quality was not measured: headprune eval {out} --data FILE")
    return outcome


def _stream(
    on_disk: _OnDisk,
    smaller: PreTrainedModel,
    staging: Path,
    *,
    after: Anatomy,
    cuts: Sequence[Cut],
) -> tuple[LoadMethod, Proof, Proof]:
    """Write the smaller model from file to file, and read it back."""
    source = on_disk.source.directory
    rewrite(source, staging, cuts=cuts)
    _note_origin(on_disk, smaller)
    description = describe(smaller, after)
    write_side_files(smaller, staging, description, source=on_disk.source.root)
    removed = on_disk.parameters_removed
    sums = numbers_add_up(
        before=count_parameters(on_disk.model),
        after=count_parameters(smaller),
        removed=removed,
        on_disk=count_stored(staging),
        expected=count_stored(source) - removed,
    )
    return description.load_method, files_are_exact(source, staging, cuts=cuts), sums


def _load_and_cut(on_disk: _OnDisk, staging: Path) -> tuple[LoadMethod, Proof]:
    """Do the same in memory."""
    source = on_disk.source
    # Notes about it were reported when its shapes were loaded.
    model = load_model(source, auto_class=None, device="cpu", notify=lambda text: None)
    before = count_parameters(model)
    after = cut(model, on_disk.anatomy, remove=on_disk.plan.remove, pad=on_disk.pad)
    _note_origin(on_disk, model)
    route = write_model(model, staging, anatomy=after, source=source.root)
    removed = on_disk.parameters_removed
    return route, parameters_add_up(before=before, removed=removed, directory=staging, model=model)


def _refuse_what_runs_the_model(settings: Settings) -> None:
    """Refuse settings that need a loaded model."""
    dtype, plan, spec = settings.model.dtype, settings.plan, settings.reconstruct
    score = "headprune score MODEL --run-dir RUN where it fits, then prune with `scores=RUN/scores.json`"
    another = "use another budget: `target_flops=0.9`, for example"
    needs = (
        (settings.run.scores is None, "no scores are named", "", score),
        (
            bool(plan.protect_role) and settings.run.roles is None,
            "`protect_role` needs roles, which are measured",
            ", `protect_role`",
            "headprune analyze MODEL --run-dir RUN where it fits, then prune with `roles=RUN/roles.json`",
        ),
        (
            dtype != "auto",
            f"`dtype` asks for {dtype}, and tensors are copied as they are",
            ", `dtype`",
            "leave `dtype` out",
        ),
        (
            spec.reconstruct not in (None, "none") or spec.allow_bias,
            "reconstruction runs the model",
            ", `reconstruct`",
            "leave out `reconstruct` and `allow_bias`",
        ),
        (plan.target_latency is not None, "latency is measured", ", `target_latency`", another),
        (
            plan.max_drop is not None,
            "how far the metric drops is measured",
            ", `max_drop`",
            another,
        ),
    )
    for is_needed, what, field, hint in needs:
        if is_needed:
            raise ConfigError(
                f"{what}; from file to file no model is loaded",
                where=f"`stream`{field}",
                hint=hint,
            )


def _look(settings: Settings, *, progress: Progress, show: Show) -> _OnDisk:
    _refuse_what_runs_the_model(settings)
    check_roles(settings.plan, settings.run)
    path = scores_file(str(settings.run.scores), method=method_of(settings.score))
    source = find_model(settings.model)
    model, complaints = load_shapes(source, notify=progress.notify)
    progress.notify(
        f"model {settings.model.model} ({model.config.model_type}), its weights left on disk"
    )
    anatomy = proven_anatomy(model, name=source.name, progress=progress)
    scores = _scores(path, source, model, progress=progress)
    roles = None
    if settings.run.roles not in (None, NO_ROLES):
        made_for = scores.model.get("fingerprint")
        roles = roles_by_name(settings, fingerprint=made_for, progress=progress)
    constraints = with_protected_heads(
        model, anatomy, settings.plan, roles=roles, notify=progress.notify
    )
    costs = cost_model(model, anatomy, constraints=constraints, batches=tuple)
    check_constraints(anatomy, constraints, costs=costs)
    compare(scores, settings, constraints, path=path, metric=None, rows=None, progress=progress)
    chosen = choose(model, anatomy, scores, constraints=constraints, costs=costs, progress=progress)
    chosen = with_roles(chosen, roles)
    show(scores, chosen)
    return _OnDisk(settings, progress, source, model, anatomy, complaints, scores, chosen, roles)


def _scores(
    path: Path, source: ModelSource, model: PreTrainedModel, *, progress: Progress
) -> HeadScores:
    """Return the scores, which must be of this model, as far as its files allow the comparison."""
    any_model = read_artefact(HeadScores, path)
    if "fingerprint" not in any_model.model:
        return any_model
    own = _fingerprint(source, model, dtype=any_model.model.get("dtype"))
    if own is None:
        progress.notify(
            "careful: some weights are called otherwise in memory than in the files, "
            "so whether the scores are of this very model isn't checked"
        )
        return any_model
    return named_scores(path, fingerprint=own)


def _fingerprint(source: ModelSource, model: PreTrainedModel, *, dtype: Any) -> str | None:
    """Return the fingerprint that the model would have in memory (scored in ``dtype``); None if its files don't tell it."""
    stored = {tensor.name: tensor for tensor in stored_tensors(source.directory)}
    in_files = {name: stored_name for stored_name, name in names_in_memory(model, stored).items()}
    aliases: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    names = {
        name: next((in_files[same] for same in aliases[parameter] if same in in_files), None)
        for name, parameter in model.named_parameters()
    }
    is_cast = str(dtype) != str(model.dtype).removeprefix("torch.")
    cast = getattr(torch, str(dtype), None) if is_cast else None

    def parameters() -> Iterator[tuple[str, Tensor, torch.dtype]]:
        for name, parameter in sorted(model.named_parameters()):
            kind = cast if isinstance(cast, torch.dtype) else parameter.dtype
            yield name, stored[str(names[name])].read(), kind

    return None if None in names.values() else fingerprint_of(parameters())


def _note_origin(on_disk: _OnDisk, smaller: PreTrainedModel) -> None:
    record = pruning_record(smaller.config)
    fingerprint = on_disk.scores.model.get("fingerprint")
    origin = {**origin_of(on_disk.source), "fingerprint": fingerprint}
    smaller.config.headprune = {**record, "source": record.get("source") or origin}
