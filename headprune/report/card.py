"""The model card (README.md) of a pruned model."""

from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from headprune.artefact import EvalResult, Latency
from headprune.errors import CheckpointError
from headprune.models.find import ModelSource
from headprune.plans import PruningPlan
from headprune.results import Results
from headprune.runtime.local import published_name
from headprune.untrusted.documents import parse_yaml, read_text

_MOST_BYTES = 1_000_000
_KEPT = ("license", "language", "pipeline_tag")
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def model_card(results: Results, plan: PruningPlan, *, source: ModelSource | None) -> str:
    """Return the card: what was removed, before and after with intervals where measured, the proofs, and how to load it."""
    data = ModelCardData(
        library_name="transformers",
        tags=["headprune", "attention-head-pruning"],
        base_model=source.name if source is not None and source.revision else None,
        **(_inherited(source.root / "README.md") if source else {}),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        results=results,
        before_and_after=partial(_before_and_after, with_cut=results.cut is not None),
        measured=_measured,
        plan=plan,
        base=published_name(source.name) if source else "This model",
        took=_took,
        layers=plan.kept_per_site.items(),
    )
    return str(card)


def _inherited(card: Path) -> dict[str, Any]:
    """Return what the card of the source says of its licence, languages and use; nothing where it can't be read.

    A card that can't be read is no reason to lose the work.
    """
    if not card.is_file():
        return {}
    try:
        _, begin, rest = read_text(card, most_bytes=_MOST_BYTES).partition("---\n")
        old = parse_yaml(rest.partition("\n---")[0]) if begin else {}
    except (CheckpointError, ValueError):
        return {}
    said = {name: old.get(name) for name in _KEPT} if isinstance(old, dict) else {}
    return {name: value for name, value in said.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    """Whether a value is a word, or a list of some."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and len(word) <= 100 for word in words)


def _took(latency: Latency) -> str:
    """Return milliseconds with their interval."""
    low, high = (f"{end:.4g}" for end in latency.interval)
    return f"{latency.ms:.4g} ms" + (f" [{low}, {high}]" if latency.repeats else "")


def _measured(result: EvalResult) -> str:
    """Return a metric with its interval."""
    low, high = result.interval
    return f"{result.value:.4f} [{low:.4f}, {high:.4f}]"


def _before_and_after(
    pair: tuple[int | None, int], *, with_cut: bool, megabytes: bool = False
) -> str:
    """Return two cells of a table, or three: what was before is left out where it isn't known; healing changes no size."""
    sizes = (*pair, pair[1]) if with_cut else pair
    cells = [
        "" if size is None else f"{size / 1e6:.1f} MB" if megabytes else f"{size:,}"
        for size in sizes
    ]
    return " | ".join(cells)
