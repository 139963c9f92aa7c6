"""How much worse a metric may become: in its own units, or as a share of what it was."""

from decimal import Decimal
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import BeforeValidator, PlainSerializer


class Drop(NamedTuple):
    """An amount; ``0.01`` is in the metric's own units, ``1%`` a share of the whole model's metric."""

    amount: float
    is_share: bool = False

    def of(self, whole: float) -> float:
        """Return the drop in the metric's own units, of a model whose metric is ``whole``."""
        return self.amount * abs(whole) if self.is_share else self.amount

    def __str__(self) -> str:
        """As an option says it: read again it is the same drop, to the last digit."""
        if not self.is_share:
            return f"{self.amount!r}".removesuffix(".0")
        return f"{Decimal(repr(self.amount)).scaleb(2):f}%".replace(".0%", "%")


def _parsed(said: Any) -> Any:
    if said is None or isinstance(said, Drop):
        return said
    text = str(said).strip()
    try:
        amount = float(text.removesuffix("%"))
    except ValueError as error:
        raise ValueError(
            "a number in the metric's own units (0.01) or a share of it (1%) is wanted"
        ) from error
    if not 0 <= amount < float("inf"):
        raise ValueError("it must be 0 or more")
    if not text.endswith("%"):
        return Drop(amount)
    return Drop(float(Decimal(text.removesuffix("%")).scaleb(-2)), True)


AllowedDrop: TypeAlias = Annotated[
    Drop | None, BeforeValidator(_parsed), PlainSerializer(lambda drop: drop and str(drop))
]
