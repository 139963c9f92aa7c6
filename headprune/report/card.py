"""The model card (README.md) of a pruned model."""

from contextlib import suppress
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from headprune.heads import PruningPlan
from headprune.models import ModelSource
from headprune.results import Results, Unmeasured

_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def model_card(results: Results | Unmeasured, plan: PruningPlan, *, source: ModelSource) -> str:
    """Return the card: what was removed, before and after with intervals where measured, the proofs, and how to load it."""
    base = source.directory / "README.md"
    inherited = {}
    if base.is_file():
        text = base.read_text(encoding="utf-8", errors="replace")
        # A card that can't be read is no reason to lose the work: nothing is inherited from it.
        with suppress(yaml.YAMLError, ValueError):
            old = ModelCard(text, ignore_metadata_errors=True)
            inherited = {
                name: value
                for name in ("license", "language", "pipeline_tag")
                if (value := getattr(old.data, name, None))
            }
    is_hub_id = source.revision is not None
    data = ModelCardData(
        library_name="transformers",
        tags=["headprune", "attention-head-pruning"],
        base_model=source.name if is_hub_id else None,
        **inherited,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        results=results,
        measured=isinstance(results, Results),
        counts=_counts(results),
        plan=plan,
        base=source.name,
        layers=plan.kept_per_site.items(),
    )
    return str(card)


def _counts(results: Results | Unmeasured) -> dict[str, tuple[int | None, int | None]]:
    """Return what is counted, before and after."""
    if isinstance(results, Unmeasured):
        return {"heads": results.heads, "parameters": results.parameters}
    return {
        "heads": (results.before.heads, results.after.heads),
        "parameters": (results.before.parameters, results.after.parameters),
    }
