"""A request to measure roles, and the function that answers it: each detector is given what it reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from headprune.analysis.call import Needle, Vocabulary
from headprune.analysis.catalogue import ROLES, Reads, Role
from headprune.analysis.needles import Trial, answered, decoded, make_trials
from headprune.analysis.repeats import repeated_sequences
from headprune.analysis.roles import Measure, Roles, decided
from headprune.analysis.statistics import measure_attention
from headprune.analysis.trees import SUFFIX
from headprune.anatomy.sites import Anatomy
from headprune.batch import Batch
from headprune.config import AnalyzeSpec
from headprune.errors import DataError, HeadpruneError, UnsupportedError
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

    @property
    def special_ids(self) -> list[int]:
        """Ids that are no words, by the tokenizer or the config."""
        if self.tokenizer is not None:
            return list(self.tokenizer.all_special_ids)
        config = self.model.config.get_text_config()
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        named = [getattr(config, name, None) for name in names]
        return [
            one
            for ids in named
            if ids is not None
            for one in (ids if isinstance(ids, list) else [ids])
        ]

    @property
    def longest(self) -> int | None:
        """The longest row that the model takes, in tokens; None where its config doesn't say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Texts with a code word, of the user's data.

        Raises:
            UnsupportedError: The model isn't a causal language model, or its tokenizer isn't known.
            DataError: There is too little text.
        """
        require_causal(self)
        if self.tokenizer is None:
            raise UnsupportedError(
                "it takes the model's tokenizer", where="`tokenizer`", hint="give it"
            )
        special = set(self.special_ids)
        text = [
            token
            for batch in self.batches
            for token in batch.inputs["input_ids"].flatten().tolist()
            if token not in special
        ]
        return make_trials(
            text,
            self.tokenizer,
            count=self.spec.num_needles,
            longest=min(self.spec.needle_length, self.longest or self.spec.needle_length),
            seed=self.seed,
        )


_LEAVE_OUT = "leave the role out"
_UNPARSED = f"it takes parsed sentences, a {SUFFIX} file (universaldependencies.org has some)"
_ABSENT = "neither the model nor the rows have such tokens or positions"


def measure(request: RoleRequest, chosen: Sequence[Role]) -> Roles:
    """Return what heads do, by the roles chosen; roles that can't be measured are in ``undefined``, with the reason."""
    measures: list[Measure] = []
    undefined: dict[str, str] = {}
    if not request.vocabulary.trees:
        undefined |= {role.name: _UNPARSED for role in chosen if role.reads == "trees"}
    for reads, function in _MEASURE.items():
        asked = [role for role in chosen if role.reads in reads and role.name not in undefined]
        if not asked:
            continue
        try:
            measures += function(request, asked)
        except (UnsupportedError, DataError) as error:
            undefined |= {role.name: _reason(error) for role in asked}
    measured = dict.fromkeys(one.role for one in measures)
    for role in chosen:
        if role.name not in measured:
            undefined.setdefault(role.name, _ABSENT)
    order = list(ROLES)
    measures.sort(key=lambda one: order.index(one.role))
    return Roles(
        heads=request.anatomy.heads,
        measures=decided(measures),
        undefined=undefined,
        thresholds={name: rule for name in measured if (rule := ROLES[name].rule)},
        seed=request.seed,
        versions=versions(),
    )


def _reason(error: HeadpruneError) -> str:
    """Return what is wrong, and what to do, unless that is only to leave the role out."""
    return error.what if error.hint == _LEAVE_OUT else f"{error.what} ({error.hint})"


def _on_attention(
    request: RoleRequest,
    roles: Sequence[Role],
    *,
    batches: Sequence[Batch],
    name: str,
    **facts: Any,
) -> tuple[Measure, ...]:
    """Measure on attention weights; ``facts`` are what is known of these batches alone."""
    return measure_attention(
        request.model,
        request.anatomy,
        roles,
        batches=batches,
        vocabulary=replace(request.vocabulary, **facts),
        context=request.context,
        name=name,
    )


def _on_rows(request: RoleRequest, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on the user's data, parsed or not.

    Raises:
        UnsupportedError: There is none, or an attention doesn't hand out its weights.
    """
    if not request.batches:
        raise UnsupportedError(
            "there are no rows to look at",
            where="`batches`",
            hint="name some: `data`",
        )
    return _on_attention(request, roles, batches=request.batches, name="what heads look at")


def _on_repeats(request: RoleRequest, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on random tokens said twice.

    Raises:
        UnsupportedError: The model isn't a causal language model.
    """
    require_causal(request)
    tokenizer, spec = request.tokenizer, request.spec
    config = request.model.config.get_text_config()
    longest = request.longest or 2 * spec.sequence_length + 1
    sequences = repeated_sequences(
        vocabulary=min(config.vocab_size, len(tokenizer) if tokenizer else config.vocab_size),
        special=request.special_ids,
        start=getattr(tokenizer or config, "bos_token_id", None),
        length=min(spec.sequence_length, (longest - 1) // 2),
        count=spec.num_sequences,
        seed=request.seed,
    )
    return _on_attention(
        request, roles, batches=sequences, name="random tokens said twice", trees={}
    )


def _on_needles(request: RoleRequest, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on texts with a code word, which is given as the answer."""
    batches, needles = answered(request.trials, [trial.code for trial in request.trials])
    return _retrieved(request, roles, batches, needles, name="code words, given")


def _on_answers(request: RoleRequest, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on texts with a code word, which the model has to say.

    Raises:
        UnsupportedError: It never does, or writes nothing by itself.
    """
    trials = request.trials
    if not request.model.can_generate():
        raise UnsupportedError(
            "it takes a model that can generate",
            where=type(request.model).__name__,
            hint="the role retrieval gives it the words",
        )
    right, answers = decoded(request.model, trials, context=request.context)
    count = len(trials)
    request.context.notify(f"code words: {len(right)} of {count} are said rightly")
    if not right:
        raise UnsupportedError(
            f"the model says none of {count} code words rightly",
            where=type(request.model).__name__,
            hint="the role retrieval gives it the words",
        )
    batches, needles = answered(right, answers)
    return _retrieved(request, roles, batches, needles, name="code words, said")


def _retrieved(
    request: RoleRequest,
    roles: Sequence[Role],
    batches: Sequence[Batch],
    needles: Mapping[int, Needle],
    *,
    name: str,
) -> tuple[Measure, ...]:
    return _on_attention(request, roles, batches=batches, name=name, trees={}, needles=needles)


def _on_weights(request: RoleRequest, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on weights alone.

    Raises:
        UnsupportedError: The model isn't a causal language model.
    """
    require_causal(request)
    return tuple(one for role in roles for one in role.load()(request))


def require_causal(request: RoleRequest) -> None:
    """Refuse models that don't predict the next token: what is made up says nothing to them.

    Raises:
        UnsupportedError: The model doesn't.
    """
    if not request.predicts_next:
        raise UnsupportedError(
            "it takes a causal language model",
            where=type(request.model).__name__,
            hint=_LEAVE_OUT,
        )


Measuring = Callable[[RoleRequest, Sequence[Role]], tuple[Measure, ...]]

_MEASURE: dict[tuple[Reads, ...], Measuring] = {
    ("rows", "trees"): _on_rows,
    ("repeats",): _on_repeats,
    ("needles",): _on_needles,
    ("answers",): _on_answers,
    ("weights",): _on_weights,
}
"""How roles are measured, by what they read; what reads the same rows shares a pass."""
