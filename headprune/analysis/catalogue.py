"""The catalogue of roles: one row describes a detector, and nothing heavy is imported for it.

To add one, add a row and write its function: ``f(call: AttentionCall)`` returns numbers of every query; of roles that read
``weights``, ``f(request: RoleRequest)`` returns ``Measure`` values.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from headprune.errors import ConfigError, did_you_mean
from headprune.late import load_function

_LINK, _NAME = re.compile(r"\[(.*?)\]\(.*?\)"), r"\1"

Reads = Literal["rows", "repeats", "trees", "needles", "answers", "weights"]
"""The user's rows, random tokens said twice, parsed sentences, texts with a code word, the model's answers on them, weights."""


@dataclass(frozen=True)
class Role:
    """One role, and how heads that have it are told.

    Args:
        name: What users call it.
        function: Where its function is, ``module:function``; imported when it is called.
        reads: What it reads.
        help: What its number is, in one line.
        source: Where it comes from.
        threshold: The published threshold; a head has the role above it. None: there is none.
        margin: How far above its baseline a head must be instead, where a margin is what was published.
        top: The share of heads that have the role instead, the highest first, where neither is published.
        unit: Of the number; empty for a share or a mean weight.
        is_ceiling: Whether no head can be above the baseline.
        least: The fewest queries (or trials) by which a head is judged; below, it is undecided.
        sign: Letter in the map of heads; heads are told to have a role that has one.
        phrase: What a head that has the role is (empty: "<name> head"), and what several do (empty: "are" that).
    """

    name: str
    function: str
    help: str
    source: str
    reads: Reads = "rows"
    threshold: float | None = None
    margin: float | None = None
    top: float | None = None
    unit: str = ""
    is_ceiling: bool = False
    least: int = 20
    sign: str = ""
    phrase: tuple[str, str] = ("", "")

    @property
    def noun(self) -> str:
        """What a head that has the role is."""
        return self.phrase[0] or f"{self.name} head"

    @property
    def rule(self) -> str:
        """When a head has the role, in words; empty where nothing decides it."""
        if self.threshold is not None:
            return f"> {self.threshold:g} {self.unit}".rstrip()
        if self.margin is not None:
            return f"> baseline + {self.margin:g}"
        return "" if self.top is None else f"top {self.top:.0%}"

    @property
    def about(self) -> str:
        """What its number is, and where it comes from."""
        return f"{self.help} ({_LINK.sub(_NAME, self.source)})"

    def load(self) -> Callable[..., Any]:
        """Import the role's function."""
        loaded: Callable[..., Any] = load_function(self.function)
        return loaded


_POSITIONS = "headprune.analysis.positions"
_TOKENS = "headprune.analysis.tokens"
_REPEATS = "headprune.analysis.repeats"
_NEEDLES = "headprune.analysis.needles"
_WEIGHTS = "headprune.analysis.weights"
_CLARK = "[Clark et al. 2019](https://arxiv.org/abs/1906.04341)"
_VOITA = "[Voita et al. 2019](https://arxiv.org/abs/1905.09418)"
_OLSSON = "[Olsson et al. 2022](https://arxiv.org/abs/2209.11895)"
_WU = "[Wu et al. 2025](https://arxiv.org/abs/2404.15574)"
_COPY_SUPPRESSION = "[McDougall et al. 2023](https://arxiv.org/abs/2310.04625)"
_ELHAGE = "[Elhage et al. 2021](https://transformer-circuits.pub/2021/framework/index.html)"
_YIN = "[Yin and Steinhardt 2025](https://arxiv.org/abs/2502.14010)"

_ROWS = (
    Role(
        name="sink",
        function=f"{_TOKENS}:sink",
        help="mean attention to the first token",
        source="[Gu et al. 2025](https://arxiv.org/abs/2410.10781)",
        threshold=0.3,
        sign="s",
        phrase=("sink", ""),
    ),
    Role(
        name="previous",
        function=f"{_POSITIONS}:previous",
        help="mean attention to the token before",
        source=_CLARK,
        threshold=0.5,
        sign="p",
        phrase=("previous-token head", "look at the previous token"),
    ),
    Role(
        name="next",
        function=f"{_POSITIONS}:following",
        help="mean attention to the token after",
        source=_CLARK,
        threshold=0.5,
        sign="n",
        phrase=("next-token head", "look at the next token"),
    ),
    Role(
        name="offset",
        function=f"{_POSITIONS}:offset",
        help="how often the largest weight is at one and the same distance",
        source=_VOITA,
        threshold=0.9,
        sign="o",
        phrase=("fixed-distance head", "look at one fixed distance"),
    ),
    Role(
        name="self",
        function=f"{_POSITIONS}:self_attention",
        help="mean attention of a token to itself",
        source=_CLARK,
        threshold=0.5,
        sign="=",
        phrase=("own-token head", "look at the token itself"),
    ),
    Role(
        name="cls",
        function=f"{_TOKENS}:cls",
        help="mean attention to [CLS]",
        source=_CLARK,
        threshold=0.6,
        sign="c",
        phrase=("[CLS] head", "look at [CLS]"),
    ),
    Role(
        name="sep",
        function=f"{_TOKENS}:sep",
        help="mean attention to [SEP]",
        source=_CLARK,
        threshold=0.6,
        sign="e",
        phrase=("[SEP] head", "look at [SEP]"),
    ),
    Role(
        name="punctuation",
        function=f"{_TOKENS}:punctuation",
        help="mean attention to full stops and commas",
        source=_CLARK,
        threshold=0.6,
        sign=".",
        phrase=("punctuation head", "look at full stops and commas"),
    ),
    Role(
        name="rare",
        function=f"{_TOKENS}:rare",
        help="how often the largest weight is on the rarest token of the row, by the rows' own counts",
        source=_VOITA,
        threshold=0.5,
        sign="r",
        phrase=("rare-token head", "look at the rarest token"),
    ),
    Role(
        name="broad",
        function=f"{_POSITIONS}:broad",
        help="entropy of the attention weights",
        source=_CLARK,
        threshold=3.8,
        is_ceiling=True,
        unit="nats",
        sign="b",
        phrase=("broad head", "look at many tokens at once"),
    ),
    Role(
        name="confident",
        function=f"{_POSITIONS}:confident",
        help="largest attention weight of a token, on average",
        source=_VOITA,
        threshold=0.8,
        sign="!",
        phrase=("confident head", "look at one token at a time"),
    ),
    Role(
        name="distance",
        function=f"{_POSITIONS}:distance",
        help="mean distance that attention spans",
        source="[Vig and Belinkov 2019](https://arxiv.org/abs/1906.04284)",
        unit="tokens",
    ),
    Role(
        name="window",
        function=f"{_POSITIONS}:window",
        help="share of the tokens before and after that the mask lets a token see: below 1, attention is causal or local",
        source="the model's own mask",
    ),
    Role(
        name="diagonal",
        function=f"{_POSITIONS}:diagonal",
        help="how near cross-attention is to the diagonal: 1 - the mean difference of relative positions",
        source="headprune's own",
    ),
    Role(
        name="induction",
        function=f"{_REPEATS}:induction",
        reads="repeats",
        help="mean attention to the token after the earlier copy of this one",
        source=f"{_OLSSON}; the top 2 % as in {_YIN}",
        top=0.02,
        sign="i",
        phrase=("induction head", ""),
    ),
    Role(
        name="duplicate",
        function=f"{_REPEATS}:duplicate",
        reads="repeats",
        help="mean attention to the earlier copy of this token",
        source="[Wang et al. 2023](https://arxiv.org/abs/2211.00593)",
        top=0.02,
        sign="d",
        phrase=("duplicate-token head", ""),
    ),
    Role(
        name="previous-random",
        function=f"{_POSITIONS}:previous",
        reads="repeats",
        help="mean attention to the token before, where tokens mean nothing",
        source=f"{_OLSSON}; threshold of {_CLARK}",
        threshold=0.5,
    ),
    Role(
        name="retrieval",
        function=f"{_NEEDLES}:retrieval",
        reads="needles",
        help="how much of a code word in a long text the head looks at while the word is given as the answer (forced)",
        source=f"{_WU}; forced: headprune's own",
        threshold=0.1,
        sign="R",
    ),
    Role(
        name="retrieval-decoded",
        function=f"{_NEEDLES}:retrieval",
        reads="answers",
        help="the same while the model says the word itself, over the trials in which it does",
        source=_WU,
        threshold=0.1,
    ),
    Role(
        name="copying",
        function=f"{_WEIGHTS}:copying",
        reads="weights",
        help="by the eigenvalues of the output-value circuit: 1 if every token that is looked at is made likelier",
        source=f"{_ELHAGE}; 0.5 is a convention",
        threshold=0.5,
        sign="+",
    ),
    Role(
        name="suppressing",
        function=f"{_WEIGHTS}:suppressing",
        reads="weights",
        help="the same with the opposite sign: 1 if every token that is looked at is made less likely",
        source=f"{_ELHAGE}; 0.5 is a convention",
        threshold=0.5,
        sign="-",
    ),
    Role(
        name="own-rank",
        function=f"{_WEIGHTS}:own_rank",
        reads="weights",
        help="share of 100 random tokens that, if looked at, come among the 5 likeliest, and among the 10 least likely",
        source=_COPY_SUPPRESSION,
    ),
    Role(
        name="syntax",
        function="headprune.analysis.syntax:syntax",
        reads="trees",
        help="how often the largest weight between words is on the head, or the dependent, of a relation",
        source=f"{_CLARK}; margin of {_VOITA}",
        margin=0.1,
        sign="y",
        phrase=("syntax head", ""),
    ),
)

ROLES: dict[str, Role] = {row.name: row for row in _ROWS}
"""All roles, by name."""


def get_role(name: str, *, where: str = "`roles`", decided: bool = False) -> Role:
    """Return the row of a role.

    Args:
        name: Its name.
        where: Which setting named it.
        decided: Whether it must be one that a head has or hasn't, and no number of every head.

    Raises:
        ConfigError: There is no such role.
    """
    if name not in ROLES:
        raise ConfigError(f"there is no role {name!r}", where=where, hint=did_you_mean(name, ROLES))
    if decided and not ROLES[name].rule:
        what = f"{name} is a number of every head, and no role that a head has or hasn't"
        raise ConfigError(what, where=where, hint="headprune roles shows the rules")
    return ROLES[name]
