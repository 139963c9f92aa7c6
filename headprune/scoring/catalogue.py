"""The catalogue of scoring methods: one row describes a method, and nothing heavy is imported for it.

To add a method, add a row here and write its function, ``function(request: ScoreRequest) -> Estimate``, in the module
that the row names.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from headprune.errors import ConfigError, did_you_mean
from headprune.late import load_function

ObjectiveName = Literal["loss", "metric", "distill"]
"""What scores measure: the task's loss, the metric, or the distance to the unpruned model's outputs."""


@dataclass(frozen=True)
class Method:
    """One scoring method.

    Args:
        name: What users call it.
        function: Where its function is, ``module:function``; imported when it is called.
        help: What the score of a head is, in one line.
        cost: What it costs, in forwards of the calibration data.
        use: What it is good for, in one line.
        source: Where it comes from.
        needs_rows: Whether it runs the model on calibration rows.
        needs_labels: Whether it reads the loss, which takes labels unless the objective does without.
        differentiates: Whether it takes derivatives of the loss. With ``distill``, it gets sampled targets.
        needs_attention_weights: Whether it reads attention weights, so that the model's plain attention runs.
        depends_on_batches: Whether scores change with the batch size.
        rescorable: Whether the remaining heads can be scored again after some heads were removed, as steps do.
        one_process: Whether its work can't be shared between processes.
        has_products: Whether it also gives the joint loss of two heads of an attention, which ``rearrange`` needs.
        objectives: The objectives that it supports.
    """

    name: str
    function: str
    help: str
    cost: str
    use: str
    source: str = ""
    needs_rows: bool = True
    needs_labels: bool = True
    differentiates: bool = False
    needs_attention_weights: bool = False
    depends_on_batches: bool = False
    rescorable: bool = True
    one_process: bool = False
    has_products: bool = False
    objectives: Collection[ObjectiveName] = ("loss", "distill")

    def load(self) -> Callable[..., Any]:
        """Import the method's function."""
        loaded: Callable[..., Any] = load_function(self.function)
        return loaded


_GRADIENTS = "headprune.scoring.gradients"
_ACTIVATIONS = "headprune.scoring.activations"
_ATTENTION = "headprune.scoring.attention"
_ONE_PASS = "1 forward, 1 backward"
_MICHEL = "[Michel et al. 2019](https://arxiv.org/abs/1905.10650)"
_KWON = "[Kwon et al. 2022](https://arxiv.org/abs/2204.09656)"
_FLAP = "[FLAP 2024](https://arxiv.org/abs/2312.11983)"
_VOITA = "[Voita et al. 2019](https://arxiv.org/abs/1905.09418)"

_ROWS = (
    Method(
        name="unique",
        function=f"{_GRADIENTS}:unique",
        help="`gradient`, restricted to the part of the head's output that the other heads and the bias can't reproduce by "
        "refitting the projection; absolute values are taken per 32 positions",
        cost="2 forwards, 1 backward",
        use="choose which heads are removed, with reconstruction",
        differentiates=True,
    ),
    Method(
        name="gradient",
        function=f"{_GRADIENTS}:gradient",
        help="mean over examples of how fast the loss moves with a gate on the head",
        cost=_ONE_PASS,
        use="choose which heads are removed, without reconstruction",
        source=f"{_MICHEL}, eq. 2",
        differentiates=True,
    ),
    Method(
        name="gradient:token",
        function=f"{_GRADIENTS}:gradient_per_token",
        help="`gradient` with absolute values per token",
        cost=_ONE_PASS,
        use="compare with the code of Michel et al.",
        source=f"code of {_MICHEL}",
        differentiates=True,
    ),
    Method(
        name="gradient:batch",
        function=f"{_GRADIENTS}:gradient_per_batch",
        help="`gradient` of the mean loss of a batch: depends on the batch size",
        cost=_ONE_PASS,
        use="compare with transformers v4's run_bertology and TextPruner",
        differentiates=True,
        depends_on_batches=True,
    ),
    Method(
        name="fisher",
        function=f"{_GRADIENTS}:fisher",
        help="`gradient` with squares in place of absolute values",
        cost=_ONE_PASS,
        use="weigh rare, large effects more",
        source=f"{_KWON}, eq. 6",
        differentiates=True,
        has_products=True,
    ),
    Method(
        name="fisher:batch",
        function=f"{_GRADIENTS}:fisher_per_batch",
        help="`fisher` of the mean loss of a batch: depends on the batch size",
        cost=_ONE_PASS,
        use="compare with the code of Kwon et al.",
        source=f"code of {_KWON}",
        differentiates=True,
        depends_on_batches=True,
        has_products=True,
    ),
    Method(
        name="ablation",
        function="headprune.scoring.ablation:ablation",
        help="what the loss does when this one head is silent, exactly, with its standard error; or the metric itself",
        cost="a partial forward per head: only the blocks it can change",
        use="know what one head does",
        source=f"{_MICHEL}, section 3",
        rescorable=False,
        objectives=("loss", "metric", "distill"),
    ),
    Method(
        name="only",
        function="headprune.scoring.ablation:only",
        help="how much better the loss (or the metric) is with this one head in its attention than with none there",
        cost="a partial forward per head and per attention",
        use="know whether one head per layer is enough",
        source=f"{_MICHEL}, section 3.3",
        rescorable=False,
        objectives=("loss", "metric", "distill"),
    ),
    Method(
        name="shapley",
        function="headprune.scoring.ablation:shapley",
        help="what removing the head costs, on average over 16 orders of removal",
        cost="up to 16 forwards per head",
        use="see heads that stand in for each other",
        source="[Ghorbani and Zou 2019](https://arxiv.org/abs/1904.02868)",
        rescorable=False,
    ),
    Method(
        name="gates",
        function="headprune.scoring.gates:gates",
        help="how far open the head's gate stays when all heads pay for theirs; weights are frozen",
        cost="training: at least 200 batches forward and backward",
        use="choose which heads are removed, together",
        source=_VOITA,
        depends_on_batches=True,
        rescorable=False,
        one_process=True,
    ),
    Method(
        name="activation",
        function=f"{_ACTIVATIONS}:activation",
        help="size of what the head puts out",
        cost="1 forward",
        use="score without a loss",
        source="[Minitron 2024](https://arxiv.org/abs/2407.14679)",
        needs_labels=False,
    ),
    Method(
        name="fluctuation",
        function=f"{_ACTIVATIONS}:fluctuation",
        help="how much what the head puts out varies, times what the output projection lets through",
        cost="1 forward",
        use="score without a loss; `normalize=standard` makes layers comparable",
        source=f"{_FLAP}, eq. 5",
        needs_labels=False,
    ),
    Method(
        name="fluctuation:channel",
        function=f"{_ACTIVATIONS}:fluctuation_per_channel",
        help="`fluctuation` squared and standardized over the coordinates of a layer, then averaged to heads",
        cost="1 forward",
        use="score without a loss, as FLAP's code does",
        source=f"code of {_FLAP}",
        needs_labels=False,
    ),
    Method(
        name="confidence",
        function=f"{_ATTENTION}:confidence",
        help="largest attention weight of a position, on average",
        cost="1 forward, plain attention",
        use="see what heads do",
        source=_VOITA,
        needs_labels=False,
        needs_attention_weights=True,
    ),
    Method(
        name="entropy",
        function=f"{_ATTENTION}:entropy",
        help="how narrowly the head looks: the negative entropy of its attention weights",
        cost="1 forward, plain attention",
        use="see what heads do",
        source="[Clark et al. 2019](https://arxiv.org/abs/1906.04341)",
        needs_labels=False,
        needs_attention_weights=True,
    ),
    Method(
        name="sink",
        function=f"{_ATTENTION}:sink",
        help="how little the head looks at the first position",
        cost="1 forward, plain attention",
        use="see what heads do",
        source="[Xiao et al. 2024](https://arxiv.org/abs/2309.17453)",
        needs_labels=False,
        needs_attention_weights=True,
    ),
    Method(
        name="magnitude",
        function=f"{_ACTIVATIONS}:magnitude",
        help="norm of the head's columns of the output projection",
        cost="nothing",
        use="have a baseline without data",
        needs_rows=False,
        needs_labels=False,
        rescorable=False,
    ),
    Method(
        name="random",
        function=f"{_ACTIVATIONS}:random",
        help="a seeded number",
        cost="nothing",
        use="know what any method must beat",
        needs_rows=False,
        needs_labels=False,
        rescorable=False,
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
"""All methods, by name."""

DEFAULT_METHOD = "unique"


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"there is no such method; {did_you_mean(name, METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(_known)]
"""A setting that names a method."""


def get_method(name: str) -> Method:
    """Return the row of a method.

    Raises:
        ConfigError: There is no such method.
    """
    if name not in METHODS:
        raise ConfigError(
            f"there is no method {name!r}", where="`method`", hint=did_you_mean(name, METHODS)
        )
    return METHODS[name]
