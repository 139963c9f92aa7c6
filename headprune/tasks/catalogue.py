"""The tasks and the metrics there are: one row each. To add one, write its row here and its function, and nothing else.

Nothing heavy is imported: a row names its function as ``module:function``, and :func:`headprune.late.load_function` loads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from headprune.errors import ConfigError, did_you_mean

Predicted = Literal["classes", "numbers", "likelihoods"]
"""What a task predicts, and a metric compares: a class, a number, or the likelihood of a window of tokens."""


@dataclass(frozen=True)
class ColumnNames:
    """Names that columns of data sets usually have, in lower case.

    Args:
        pairs: Names of two columns that hold a pair of texts.
        weak_pairs: Pairs used only if no other column could be text.
        texts: Names of columns that hold texts.
        labels: Names of columns that hold labels.
    """

    pairs: tuple[tuple[str, str], ...] = (
        *(("sentence1", "sentence2"), ("text1", "text2"), ("text_a", "text_b")),
        *(("text", "text_pair"), ("premise", "hypothesis"), ("question1", "question2")),
        *(("question", "sentence"), ("s1", "s2")),
    )
    weak_pairs: tuple[tuple[str, str], ...] = (("question", "sentence"), ("text", "text_pair"))
    texts: tuple[str, ...] = (
        *("text", "sentence", "content", "review", "document", "question", "title"),
        *("passage", "context", "query", "claim", "evidence", "abstract", "body", "headline"),
        *("prompt", "completion", "response", "utterance", "tweet", "comment", "statement"),
    )
    labels: tuple[str, ...] = (
        *("label", "labels", "score", "similarity", "similarity_score"),
        *("target", "class", "intent"),
    )


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """The facts about a task that are known before its model is loaded.

    Args:
        name: Its name on the command line.
        help: One line on what it measures.
        function: The function that returns its :class:`~headprune.tasks.task.Task`, as ``module:function``.
        auto_class: The ``AutoModel...`` class that loads its models.
        heads: Suffixes of model class names; the task of the first suffix that fits a config is detected.
        embeds_sentences: Whether a model directory of sentence-transformers has this task, whatever its class.
        one_output: The task of a model of the same class that has one output; empty if that is this task.
        metric: The default metric.
        predicts: What it predicts: a metric must compare the same.
        label: What a label is: a class, a number, or nothing where the task reads none.
        num_texts: How many text columns it may read.
        distance: The name of its distance to the unpruned model's outputs (objective ``distill``).
        teacher_shares: Config entries that teacher and student must share, and what each counts.
        reads_forward: Whether its models must be causal: they predict each token from the preceding tokens only.
        reads_prose: Whether the rows are pieces of one text, not examples.
        same_scale: Whether its loss takes predictions and labels to be on one scale.
        columns: Names by which its columns are found where the user names none.
    """

    name: str
    help: str
    function: str
    auto_class: str
    heads: tuple[str, ...] = ()
    embeds_sentences: bool = False
    one_output: str = ""
    metric: str
    predicts: Predicted
    label: Literal["class", "number", ""]
    num_texts: tuple[int, ...] = (1, 2)
    distance: str
    teacher_shares: Mapping[str, str] = field(default_factory=dict)
    reads_forward: bool = False
    reads_prose: bool = False
    same_scale: bool = False
    columns: ColumnNames = ColumnNames()


TASKS: dict[str, TaskRow] = {
    row.name: row
    for row in (
        TaskRow(
            name="similarity",
            help="how alike two sentences are: their embeddings' similarity against a human score",
            function="headprune.tasks.similarity:build",
            auto_class="AutoModel",
            embeds_sentences=True,
            metric="spearman",
            predicts="numbers",
            label="number",
            num_texts=(2,),
            distance="cosine distance",
            teacher_shares={"hidden_size": "numbers in an embedding"},
        ),
        TaskRow(
            name="classification",
            help="which class a text, or a pair of texts, belongs to",
            function="headprune.tasks.sequence:build_classification",
            auto_class="AutoModelForSequenceClassification",
            heads=("ForSequenceClassification",),
            one_output="regression",
            metric="accuracy",
            predicts="classes",
            label="class",
            distance="KL divergence",
            teacher_shares={"num_labels": "classes", "id2label": "classes"},
        ),
        TaskRow(
            name="regression",
            help="one number for a text, or a pair of texts: scores, rerankers",
            function="headprune.tasks.sequence:build_regression",
            auto_class="AutoModelForSequenceClassification",
            heads=("ForSequenceClassification",),
            metric="spearman",
            predicts="numbers",
            label="number",
            distance="squared difference",
            teacher_shares={"vocab_size": "words"},
            same_scale=True,
        ),
        TaskRow(
            name="causal-lm",
            help="how well each token of a text is predicted from those before it; needs no labels",
            function="headprune.tasks.causal_lm:build",
            auto_class="AutoModelForCausalLM",
            heads=("ForCausalLM", "LMHeadModel"),
            metric="perplexity",
            predicts="likelihoods",
            label="",
            num_texts=(1,),
            distance="KL divergence",
            teacher_shares={"vocab_size": "words"},
            reads_forward=True,
            reads_prose=True,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """The facts about a metric.

    Args:
        name: Its name on the command line.
        help: One line on what it measures.
        function: ``(predictions, references) -> value``, as ``module:function``; empty for one that ``evaluate.load`` loads.
        higher_is_better: Which direction is better.
        takes: The kinds of predictions that it compares.
        is_logarithmic: Whether it is the exponential of a mean, so that it is shown and allowed to drop on a log scale.
        by_class: Whether the function takes the model's classes, too, as ``classes``.
        source: Where it is defined.
    """

    name: str
    help: str
    function: str
    higher_is_better: bool
    takes: tuple[Predicted, ...]
    is_logarithmic: bool = False
    by_class: bool = False
    source: str = ""


METRICS: dict[str, MetricRow] = {
    row.name: row
    for row in (
        MetricRow(
            name="spearman",
            help="rank correlation of predictions and labels",
            function="headprune.tasks.metrics:spearman",
            higher_is_better=True,
            takes=("numbers",),
            source="Spearman 1904",
        ),
        MetricRow(
            name="pearson",
            help="linear correlation of predictions and labels",
            function="headprune.tasks.metrics:pearson",
            higher_is_better=True,
            takes=("numbers",),
            source="Pearson 1895",
        ),
        MetricRow(
            name="accuracy",
            help="share of predictions that are right",
            function="headprune.tasks.metrics:accuracy",
            higher_is_better=True,
            takes=("classes",),
        ),
        MetricRow(
            name="f1",
            help="F1 of class 1 of two, else the unweighted mean over the classes",
            function="headprune.tasks.metrics:f1",
            higher_is_better=True,
            takes=("classes",),
            by_class=True,
            source="van Rijsbergen 1979",
        ),
        MetricRow(
            name="matthews_correlation",
            help="correlation of predicted and true classes",
            function="headprune.tasks.metrics:matthews_correlation",
            higher_is_better=True,
            takes=("classes",),
            source="Gorodkin 2004",
        ),
        MetricRow(
            name="perplexity",
            help="exponential of the mean negative log-likelihood of a token",
            function="headprune.tasks.metrics:perplexity",
            higher_is_better=False,
            takes=("likelihoods",),
            is_logarithmic=True,
            source="Jelinek et al. 1977",
        ),
    )
}


def task_row(name: str) -> TaskRow:
    """Return a task's row.

    Raises:
        ConfigError: There is no such task.
    """
    if name not in TASKS:
        raise ConfigError(
            f"there is no task {name!r}", where="`task`", hint=did_you_mean(name, TASKS)
        )
    return TASKS[name]


def is_logarithmic(metric: str) -> bool:
    """Whether a metric is the exponential of a mean; False for a metric that isn't built in, of which nothing is known."""
    return metric in METRICS and METRICS[metric].is_logarithmic


def require_metric(
    name: str,
    *,
    higher_is_better: bool | None = None,
    predicted: Predicted | None = None,
    row: MetricRow | None = None,
) -> None:
    """Refuse a metric that doesn't fit, as far as its row tells: before anything is loaded.

    Args:
        name: The metric: a built-in one, or one of ``evaluate``.
        higher_is_better: Whether higher is better according to the settings; None if they don't have it.
        predicted: What the task predicts; None where that isn't known yet.
        row: The row of a metric of ``evaluate``, once it is loaded.

    Raises:
        ConfigError: The metric's direction is unknown or contradicts the settings, or it doesn't compare what the task predicts.
    """
    row = row or METRICS.get(name)
    if row is None and higher_is_better is None:
        raise ConfigError(
            f"{name!r} is no built-in metric, and it isn't said which way it is better",
            where="`metric`",
            hint="add `higher_is_better=True` or `higher_is_better=False`; "
            f"built in: {did_you_mean(name, METRICS)}",
        )
    if row is not None and higher_is_better not in (None, row.higher_is_better):
        better, other = ("higher", "lower") if row.higher_is_better else ("lower", "higher")
        setting = f"`higher_is_better={higher_is_better}`"
        raise ConfigError(
            f"of {name} {better} is better, and the settings say that {other} is",
            where=f"`metric={name}` {setting}",
            hint=f"leave {setting} out, or choose another `metric`",
        )
    if row is not None and predicted not in (None, *row.takes):
        fitting = ", ".join(one.name for one in METRICS.values() if predicted in one.takes)
        raise ConfigError(
            f"{name} compares {' or '.join(row.takes)}, and the task predicts {predicted}",
            where=f"`metric={name}`",
            hint=f"metrics of {predicted}: {fitting}",
        )
