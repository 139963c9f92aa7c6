"""A request to measure roles, and the function that answers it: each detector is given what it reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES, Reads, Role
from headprune.analysis.repeats import repeated_sequences
from headprune.analysis.roles import Measure, Roles, decided, rule_of
from headprune.analysis.statistics import measure_attention
from headprune.analysis.trees import SUFFIX
from headprune.anatomy import Anatomy
from headprune.batch import Batch
from headprune.config import AnalyzeSpec
from headprune.errors import UnsupportedError
from headprune.passes import SILENT, RunContext
from headprune.placement import versions


@dataclass(frozen=True, eq=False)
class RoleRequest:
    """Whose heads are looked at, and on what.

    Args:
        model: The model, in eval mode.
        anatomy: Where its heads are.
        batches: The user's data; none, where no role reads it.
        vocabulary: What is known of its tokens.
        tokenizer: The model's, where it is known.
        spec: How many sequences are made up, and how long.
        seed: Of what is made up.
        predicts_next: Whether it is a causal language model.
        context: How the work runs.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    batches: Sequence[Batch] = ()
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    tokenizer: Any = None
    spec: AnalyzeSpec = field(default_factory=AnalyzeSpec)
    seed: int = 0
    predicts_next: bool = False
    context: RunContext = SILENT


def measure(request: RoleRequest, chosen: Sequence[Role]) -> Roles:
    """Return what heads do, by the roles chosen; roles that can't be measured are in ``undefined``, with the reason."""
    measures: list[Measure] = []
    undefined: dict[str, str] = {}
    for reads, function in _MEASURE.items():
        asked = [role for role in chosen if role.reads == reads]
        if not asked:
            continue
        try:
            measures += function(request, asked)
        except UnsupportedError as error:
            undefined |= {role.name: error.what for role in asked}
    measured = dict.fromkeys(one.role for one in measures)
    for role in chosen:
        if role.name not in measured:
            undefined.setdefault(role.name, "the model has no such positions or tokens")
    order = list(ROLES)
    measures.sort(key=lambda one: order.index(one.role))
    return Roles(
        heads=request.anatomy.heads,
        measures=decided(measures),
        undefined=undefined,
        thresholds={name: rule for name in measured if (rule := rule_of(ROLES[name]))},
        seed=request.seed,
        versions=versions(),
    )


def _on_rows(request: RoleRequest, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on the user's data.

    Raises:
        UnsupportedError: There is none, or an attention doesn't hand out its weights.
    """
    if not request.batches:
        raise UnsupportedError(
            "there are no rows to look at",
            where="`batches`",
            hint="give some, or leave the role out",
        )
    return measure_attention(
        request.model,
        request.anatomy,
        roles,
        batches=request.batches,
        vocabulary=request.vocabulary,
        context=request.context,
        name="what heads look at",
    )


def _on_repeats(request: RoleRequest, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on random tokens said twice, which a causal model alone can use.

    Raises:
        UnsupportedError: The model isn't one.
    """
    if not request.predicts_next:
        raise UnsupportedError(
            "only a causal language model reads made-up sequences",
            where=type(request.model).__name__,
            hint="leave the role out",
        )
    tokenizer, spec = request.tokenizer, request.spec
    config = request.model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 2 * spec.sequence_length + 1
    size, named, special = config.vocab_size, config, _special_ids(config)
    if tokenizer is not None:
        size, named, special = min(len(tokenizer), size), tokenizer, tokenizer.all_special_ids
    sequences = repeated_sequences(
        vocabulary=size,
        special=special,
        start=named.bos_token_id,
        length=min(spec.sequence_length, (longest - 1) // 2),
        count=spec.num_sequences,
        seed=request.seed,
    )
    return measure_attention(
        request.model,
        request.anatomy,
        roles,
        batches=sequences,
        vocabulary=request.vocabulary,
        context=request.context,
        name="random tokens said twice",
    )


def _on_trees(request: RoleRequest, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on parsed sentences.

    Raises:
        UnsupportedError: The data isn't parsed.
    """
    if not request.vocabulary.trees:
        raise UnsupportedError(
            f"it takes parsed sentences, a {SUFFIX} file",
            where="`data`",
            hint="universaldependencies.org has them in many languages",
        )
    return _on_rows(request, roles)


def _special_ids(config: Any) -> list[int]:
    """Return the ids that a config names, one or several each."""
    named = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
    return [
        one for ids in named if ids is not None for one in (ids if isinstance(ids, list) else [ids])
    ]


Measuring = Callable[[RoleRequest, Sequence[Role]], tuple[Measure, ...]]

_MEASURE: dict[Reads, Measuring] = {
    "rows": _on_rows,
    "repeats": _on_repeats,
    "trees": _on_trees,
}
"""How roles are measured, by what they read."""
