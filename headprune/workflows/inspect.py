"""``inspect``: what could be pruned of a model, from its config alone."""

import copy
import random
from typing import Any

from transformers import PreTrainedModel

from headprune.anatomy.clone import pruning_record
from headprune.anatomy.sites import Anatomy, Site
from headprune.artefact import LoadMethod
from headprune.config import Constraints, Settings
from headprune.errors import PlanError
from headprune.inspection import inspect as inspect_model
from headprune.models.describe import stock_config
from headprune.models.legacy import pruned_heads
from headprune.models.load import empty_model
from headprune.models.stream import untie_as_stored
from headprune.passes import Progress
from headprune.placement import count_parameters
from headprune.planning.constraints import with_keep
from headprune.planning.costs import savings
from headprune.planning.plan import make_plan
from headprune.plans import HeadScores, PruningPlan
from headprune.results import Survey, SurveyedSite
from headprune.surgery.cut import cut
from headprune.workflows.session import find_model

KEEP = 0.7


def inspect(settings: Settings, *, progress: Progress) -> Survey:
    """Look at a model; ``config.json`` is enough, and no memory is taken.

    If weights are there, tied parameters are read from them.
    """
    source = find_model(settings.model, weights=False)
    for note in source.notes:
        progress.notify(note)
    progress.notify(
        f"model {settings.model.model} ({source.config.model_type}), from its config alone"
    )
    model = empty_model(source)
    untie_as_stored(model, source.directory)
    anatomy = inspect_model(model)
    constraints = with_keep(settings.plan, settings.plan.keep or KEEP).model_copy(
        update={"rearrange": False}
    )
    uneven, uniform = (
        constraints.model_copy(update={"uniform": uniform}) for uniform in (False, True)
    )
    return Survey(
        model_type=anatomy.model_type,
        architecture=type(model).__name__,
        num_heads=len(anatomy.heads),
        parameters=count_parameters(model),
        sites=tuple(_surveyed(site) for site in anatomy.sites),
        refused=dict(anatomy.refused),
        pruned_before=_before(model, v4=bool(pruned_heads(source.config))),
        loads_with={
            "uneven": _load_method(model, anatomy, uneven),
            "uniform": _load_method(model, anatomy, uniform),
        },
        saves=_saves(model, anatomy, constraints),
    )


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
    """Return the heads that earlier pruning removed, and which program removed them."""
    record = pruning_record(model.config)
    if not record:
        return {}
    by = "transformers v4 (config.pruned_heads)" if v4 else "headprune"
    return {"by": by, "removed": record.get("removed", [])}


def _any_plan(anatomy: Anatomy, constraints: Constraints) -> PruningPlan:
    """Return a plan of the size that any scores would give: what it saves hardly depends on which heads are removed."""
    drawn = random.Random(0)
    values = tuple(drawn.random() for _ in anatomy.heads)
    scores = HeadScores(method="random", heads=anatomy.heads, values=values, n=0, seed=0)
    return make_plan(scores, anatomy, constraints=constraints)


def _load_method(
    model: PreTrainedModel, anatomy: Anatomy, constraints: Constraints
) -> LoadMethod | None:
    """Return how a pruned model would load; None if no plan meets the constraints."""
    try:
        plan = _any_plan(anatomy, constraints)
    except PlanError:
        return None
    smaller = copy.deepcopy(model)
    after = cut(smaller, anatomy, remove=plan.remove, pad=plan.is_padded)
    return "remote-code" if stock_config(smaller, after) is None else "stock"


def _saves(model: PreTrainedModel, anatomy: Anatomy, constraints: Constraints) -> dict[str, Any]:
    try:
        plan = _any_plan(anatomy, constraints)
    except PlanError as error:
        return {"keep": constraints.keep, "impossible": error.what}
    saved = savings(model, anatomy, removed=plan.remove, pad=plan.is_padded)
    return {"keep": constraints.keep, "heads": len(plan.remove), **saved.as_dict()}
