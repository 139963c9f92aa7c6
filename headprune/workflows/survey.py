"""What could be pruned of a model, from its config alone; and old checkpoints made loadable."""

import copy
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.anatomy.clone import pruning_record, stock_class
from headprune.config import Constraints, Recipe
from headprune.errors import CheckpointError, PlanError
from headprune.inspection import inspect
from headprune.models.classes import auto_class_of
from headprune.models.describe import LoadMethod, stock_config
from headprune.models.find import ModelSource, find
from headprune.models.legacy import pickled_weights, pruned_heads, rewritten
from headprune.models.load import empty_model, load_model
from headprune.models.manifest import refuse_source, refuse_unusable_output
from headprune.models.shards import untie_as_stored
from headprune.models.tokenizer import tokenizer_of
from headprune.placement import count_parameters
from headprune.planning import make_plan, savings
from headprune.planning.constraints import with_keep
from headprune.plans import HeadScores
from headprune.results import Results, Survey, SurveyedSite
from headprune.subject import Progress, find_model, model_name
from headprune.surgery import cut
from headprune.workflows.finish import InMemory, Written, finish

KEEP = 0.7


def survey(recipe: Recipe, *, progress: Progress) -> Survey:
    """Look at a model; ``config.json`` is enough, and no memory is taken. Weights that lie there say what of them is tied."""
    source = find_model(recipe, weights=False)
    for note in source.notes:
        progress.notify(note)
    progress.notify(f"model {recipe.model} ({source.config.model_type}), from its config alone")
    model = empty_model(source)
    untie_as_stored(model, source.directory)
    anatomy = inspect(model)
    keep = KEEP if recipe.keep is None else recipe.keep
    return Survey(
        model_type=anatomy.model_type,
        architecture=type(model).__name__,
        num_heads=len(anatomy.heads),
        parameters=count_parameters(model),
        sites=tuple(_surveyed(site) for site in anatomy.sites),
        refused=dict(anatomy.refused),
        pruned_before=_before(model, v4=bool(pruned_heads(source.config))),
        loads_with={
            name: _route(model, anatomy, _constraints(recipe, keep=keep, uniform=uniform))
            for name, uniform in (("uneven", False), ("uniform", True))
        },
        saves=_saves(model, anatomy, _constraints(recipe, keep=keep, uniform=recipe.uniform)),
    )


def convert(recipe: Recipe, *, out: Path, progress: Progress) -> Results:
    """Write a model that transformers v4 pruned, or pickled, so that it loads today.

    Raises:
        CheckpointError: The model isn't one, or ``out`` isn't empty.
        ModelError: Its weights are pickled, and that they may be read wasn't said; or it can't be loaded.
        ProofError: What was written isn't the model; nothing was kept of it.
    """
    refuse_unusable_output(out, overwrite=recipe.overwrite, notify=progress.notify)
    with _readable(recipe, progress=progress) as (source, home):
        refuse_source(out, home)
        if not pruned_heads(source.config) and source.directory == home:
            raise CheckpointError(
                "transformers v4 didn't prune this model: its config has no pruned_heads",
                where=str(home / "config.json"),
                hint="headprune pruned it, and it loads as it is: headprune.load, headprune eval"
                if pruning_record(source.config)
                else "prune it: headprune prune MODEL --keep 0.7",
            )
        model = load_model(
            source, auto_class=None, device="cpu", dtype=recipe.dtype, notify=progress.notify
        )
        removed = pruning_record(model.config).get("removed", ())
        progress.notify(f"model {recipe.model}: {len(removed)} heads were removed")
        progress.notify("saving it, and loading it again in a fresh process")
        anatomy = inspect(model)
        size = count_parameters(model)

        def results(written: Written, weights: int) -> Results:
            return Results(
                heads=(len(anatomy.heads) + len(removed), len(anatomy.heads)),
                parameters=(None, size),
                proofs=written.proofs,
                weights_bytes=(None, weights),
                removed=tuple(removed),
                loads_with=written.loads_with,
                auto_class=auto_class_of(stock_class(model)),
            )

        tokenizer = tokenizer_of(replace(source, directory=home))
        smaller = InMemory(model, anatomy, home, tokenizer=tokenizer)
        outcome = finish(
            out,
            overwrite=recipe.overwrite,
            write=smaller.write,
            results=results,
            documents=lambda results: {"results.json": results.to_json()},
        )
    for proof in outcome.proofs:
        progress.notify(f"proof: {proof.name} ({proof.detail})")
    return outcome


@contextmanager
def _readable(recipe: Recipe, *, progress: Progress) -> Iterator[tuple[ModelSource, Path]]:
    """Yield the model, its weights rewritten elsewhere where they are pickled and may be read, and its own directory."""
    home = Path(model_name(recipe))
    if not (recipe.allow_pickle and home.is_dir() and pickled_weights(home)):
        source = find_model(recipe)
        yield source, source.root
        return
    find(model_name(recipe), weights=False)  # its other files are looked at before any is read
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        progress.notify("reading pickled weights, tensors alone")
        yield replace(find(str(rewritten(home, Path(folder)))), name=str(recipe.model)), home


def _constraints(recipe: Recipe, *, keep: float, uniform: bool) -> Constraints:
    constraints = with_keep(recipe.settings.plan, keep)
    return constraints.model_copy(update={"uniform": uniform, "rearrange": False})


def _surveyed(site: Site) -> SurveyedSite:
    return SurveyedSite(
        name=str(site.id),
        path=site.path,
        kind=site.id.kind,
        heads=tuple(f"{site.id}.H{head}" for head in site.heads),
        key_value_heads=len(site.groups(site.slots)),
        head_dim=site.head_dim,
        execution=site.execution,
        min_heads=site.min_heads,
    )


def _before(model: PreTrainedModel, *, v4: bool) -> dict[str, Any]:
    """Return what earlier pruning left, and who did it."""
    record = pruning_record(model.config)
    if not record:
        return {}
    by = "transformers v4 (config.pruned_heads)" if v4 else "headprune"
    return {"by": by, "removed": record.get("removed", [])}


def _any_scores(anatomy: Anatomy) -> HeadScores:
    """Return scores for a plan of the size that any scores would give: what it saves hardly depends on which heads go."""
    drawn = random.Random(0)
    values = tuple(drawn.random() for _ in anatomy.heads)
    return HeadScores(method="random", heads=anatomy.heads, values=values, n=0, seed=0)


def _route(model: PreTrainedModel, anatomy: Anatomy, constraints: Constraints) -> LoadMethod | None:
    """Return how a pruned model would load; None where there is no such plan."""
    try:
        plan = make_plan(_any_scores(anatomy), anatomy, constraints=constraints)
    except PlanError:
        return None
    smaller = copy.deepcopy(model)
    after = cut(smaller, anatomy, remove=plan.remove, pad=plan.is_padded)
    return "remote-code" if stock_config(smaller, after) is None else "stock"


def _saves(model: PreTrainedModel, anatomy: Anatomy, constraints: Constraints) -> dict[str, Any]:
    try:
        plan = make_plan(_any_scores(anatomy), anatomy, constraints=constraints)
    except PlanError as error:
        return {"keep": constraints.keep, "impossible": error.what}
    found = savings(model, anatomy, removed=plan.remove, pad=plan.is_padded)
    return {
        "keep": constraints.keep,
        "heads": len(plan.remove),
        **found.as_dict(),
    }
