"""How long a forward takes, as a value."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Latency(BaseModel):
    """How long a forward takes, in milliseconds.

    Args:
        ms: The median of the repeats.
        interval: Its 95 % interval, by order statistics; of fewer than six repeats their range.
        repeats: How many there were; 0 where an older file tells a number alone.
        tokens: Of each row; None where that isn't known.
        busy: Why the machine was too busy to tell small differences; empty where it wasn't.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ms: float
    interval: tuple[float, float]
    repeats: int = 0
    tokens: int | None = None
    busy: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        """Take the number alone that older files tell."""
        if isinstance(value, int | float):
            return {"ms": value, "interval": (value, value)}
        return value

    def change_to(self, other: "Latency") -> tuple[float, tuple[float, float]]:
        """Return how much longer ``other`` takes, as a share, and an interval: from its ends to the opposite ones of this."""
        low, high = self.interval
        ends = (other.interval[0] / high - 1, other.interval[1] / low - 1)
        return other.ms / self.ms - 1, ends
