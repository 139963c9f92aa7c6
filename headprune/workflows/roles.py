"""How roles of heads are measured, by what they read."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from headprune.analysis.call import Needle, Vocabulary
from headprune.analysis.catalogue import Reads, Role
from headprune.analysis.needles import Trial, answered, decoded, make_trials
from headprune.analysis.repeats import repeated_sequences
from headprune.analysis.request import RoleRequest
from headprune.analysis.roles import Measure
from headprune.analysis.statistics import measure_attention
from headprune.analysis.trees import SUFFIX, read_sentences, sentence_batches
from headprune.batch import Batch
from headprune.errors import UnsupportedError
from headprune.passes import RunContext
from headprune.runtime.local import published_name
from headprune.tasks.rows import Example, draw, fingerprint
from headprune.workflows.rows import rows_without_labels
from headprune.workflows.session import Session


@dataclass(frozen=True, eq=False)
class Material:
    """What roles are measured on.

    Args:
        session: The model, with its settings.
        batches: The rows; none where none are read.
        vocabulary: What is known of their tokens.
        context: How the work runs.
    """

    session: Session
    batches: Sequence[Batch]
    vocabulary: Vocabulary
    context: RunContext

    @cached_property
    def longest(self) -> int | None:
        """The longest row that the model takes, in tokens; None where its config doesn't say."""
        config = self.session.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Texts with a code word.

        Raises:
            UnsupportedError: The model isn't a causal language model.
            DataError: There is too little text.
        """
        _require_causal(self.session)
        session = self.session
        special = {*session.tokenizer.all_special_ids}
        text = [
            token
            for batch in self.batches
            for token in batch.inputs["input_ids"].flatten().tolist()
            if token not in special
        ]
        spec = session.settings.analyze
        most = min(spec.needle_length, self.longest or spec.needle_length)
        return make_trials(
            text,
            session.tokenizer,
            count=spec.num_needles,
            longest=most,
            seed=session.settings.data.seed,
        )

    def attention(
        self, roles: Sequence[Role], *, batches: Sequence[Batch], name: str, **facts: Any
    ) -> tuple[Measure, ...]:
        """Measure on attention weights; ``facts`` are what is known of these batches alone."""
        return measure_attention(
            self.session.model,
            self.session.anatomy,
            roles,
            batches=batches,
            vocabulary=replace(self.vocabulary, **facts),
            context=self.context,
            name=name,
        )


def _on_rows(material: Material, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on the user's rows.

    Raises:
        UnsupportedError: There are none.
    """
    if not material.batches:
        raise UnsupportedError("it takes rows", where="`data`", hint="name a text: `data=FILE`")
    return material.attention(roles, batches=material.batches, name="what heads look at")


def _on_trees(material: Material, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on parsed sentences.

    Raises:
        UnsupportedError: The data isn't parsed.
    """
    if not material.vocabulary.trees:
        raise UnsupportedError(
            f"it takes parsed sentences, a {SUFFIX} file",
            where="`data`",
            hint="universaldependencies.org has them in many languages",
        )
    return material.attention(roles, batches=material.batches, name="words that depend")


def _on_repeats(material: Material, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on random tokens said twice.

    Raises:
        UnsupportedError: The model isn't a causal language model.
    """
    session = material.session
    _require_causal(session)
    spec, tokenizer = session.settings.analyze, session.tokenizer
    longest = material.longest or 2 * spec.sequence_length + 1
    sequences = repeated_sequences(
        vocabulary=min(len(tokenizer), session.model.config.get_text_config().vocab_size),
        special=tokenizer.all_special_ids,
        start=tokenizer.bos_token_id,
        length=min(spec.sequence_length, (longest - 1) // 2),
        count=spec.num_sequences,
        seed=session.settings.data.seed,
    )
    return material.attention(roles, batches=sequences, name="random tokens said twice", trees={})


def _on_needles(material: Material, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on texts with a code word, which is given as the answer."""
    batches, needles = answered(material.trials, [trial.code for trial in material.trials])
    return _retrieved(material, roles, batches, needles, name="code words, given")


def _on_answers(material: Material, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on texts with a code word, which the model has to say.

    Raises:
        UnsupportedError: It never does.
    """
    session = material.session
    end = session.tokenizer.eos_token_id
    right, answers = decoded(session.model, material.trials, end=end)
    session.progress.notify(f"code words: {len(right)} of {len(material.trials)} are said rightly")
    if not right:
        raise UnsupportedError(
            f"the model said none of {len(material.trials)} code words rightly",
            where=session.source.name,
            hint="`role=retrieval` gives it the words",
        )
    batches, needles = answered(right, answers)
    return _retrieved(material, roles, batches, needles, name="code words, said")


def _retrieved(
    material: Material,
    roles: Sequence[Role],
    batches: Sequence[Batch],
    needles: dict[int, Needle],
    *,
    name: str,
) -> tuple[Measure, ...]:
    return material.attention(roles, batches=batches, name=name, trees={}, needles=needles)


def _on_weights(material: Material, roles: Sequence[Role]) -> tuple[Measure, ...]:
    """Measure on weights alone.

    Raises:
        UnsupportedError: The model isn't a causal language model.
    """
    session = material.session
    _require_causal(session)
    request = RoleRequest(
        session.model,
        session.anatomy,
        session.tokenizer,
        material.context,
        session.settings.data.seed,
    )
    return tuple(one for role in roles for one in role.load()(request))


def _require_causal(session: Session) -> None:
    """Refuse models that don't predict the next token: what is made up says nothing to them.

    Raises:
        UnsupportedError: The model doesn't.
    """
    if not session.task.row.reads_forward:
        raise UnsupportedError(
            "it takes a causal language model", where=session.source.name, hint="leave it out"
        )


def rows_to_look_at(
    session: Session, reads: Collection[Reads]
) -> tuple[dict[str, Any], Sequence[Batch], Vocabulary]:
    """Return the facts about the rows, the rows as batches, and what is known of their tokens; nothing where none are read.

    Args:
        session: The model, with its settings; data in CoNLL-U is read with its trees.
        reads: What the roles read.
    """
    settings = session.settings
    most = min(settings.score.num_samples, settings.data.limit or settings.score.num_samples)
    if set(reads) <= {"repeats", "weights"} or settings.data.data is None:
        return {}, (), Vocabulary.of(session.tokenizer, ())
    path = Path(settings.data.data)
    if path.suffix != SUFFIX:
        rows = rows_without_labels(session, most)
        batches = session.batches(rows.examples)
        return dict(rows.note), batches, Vocabulary.of(session.tokenizer, batches)
    examples = {Example(texts=(one.text,)): one for one in read_sentences(path)}
    drawn = draw(tuple(examples), most, seed=settings.data.seed)
    sentences = [examples[example] for example in drawn]
    config = session.model.config
    start = getattr(config, "decoder_start_token_id", None) if config.is_encoder_decoder else None
    batches, trees = sentence_batches(
        sentences, session.tokenizer, max_length=session.max_length, decoder_start=start
    )
    relations = sorted({name for one in sentences for name in one.relations})
    vocabulary = Vocabulary.of(session.tokenizer, batches)
    note = {
        "name": published_name(path.name),
        "task": session.task.name,
        "max_length": session.max_length,
        "fingerprint": fingerprint(drawn),
        "n": len(drawn),
    }
    return note, batches, replace(vocabulary, trees=trees, relations=tuple(relations))


MEASURE: dict[Reads, Callable[[Material, Sequence[Role]], tuple[Measure, ...]]] = {
    "rows": _on_rows,
    "repeats": _on_repeats,
    "trees": _on_trees,
    "needles": _on_needles,
    "answers": _on_answers,
    "weights": _on_weights,
}
"""How roles are measured, by what they read."""
