"""What sections of settings are made of: fields that carry their help, and errors in three parts."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from headprune.errors import ConfigError, did_you_mean

MOST = 2**31 - 1
"""Libraries take sizes as they are, and some take none larger."""

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?%?")


def option(default: Any, help: str, **extra: Any) -> Any:
    """Return a field with what the command line needs to make an option of it.

    Args:
        default: The field's default.
        help: One sentence.
        **extra: ``metavar``, ``off`` (how a switch is taken back, where that isn't
            ``--no-x``), ``short`` (``-x``); anything else is a bound that pydantic checks.
    """
    names = ("metavar", "off", "short")
    shown = {name: extra.pop(name) for name in names if name in extra}
    return Field(default, description=help, json_schema_extra=shown, **extra)


def _split(value: Any) -> Any:
    """Take ``a,b`` for ``[a, b]``."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return value
    parts = [part.strip() for item in items for part in item.split(",")]
    return [part for part in parts if part] or parts[:1]


def _alone(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _number_as_text(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_split)]
Pairs: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_alone)]
"""Texts as they are: a comma is part of a value."""
Sizes: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MOST)], ...], BeforeValidator(_split)
]
Shares: TypeAlias = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(_split)
]
Target: TypeAlias = Annotated[str | None, BeforeValidator(_number_as_text)]
BatchSize: TypeAlias = Annotated[
    int | None, BeforeValidator(lambda value: None if value == "auto" else value)
]


def _steps(value: Any) -> Any:
    """Take a switch for ``auto``, or for none."""
    if value in (None, "auto", "none") or isinstance(value, bool):
        return "auto" if value in ("auto", True) else None
    text = str(value)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST):
        raise ValueError("auto or a number of steps, 1 or more, is wanted")
    return int(text)


Steps: TypeAlias = Annotated[int | Literal["auto"] | None, BeforeValidator(_steps)]


class Section(BaseModel):
    """Settings of one stage. A value that can't be used is an error in three parts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_min_length=1)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: Callable[[Any], "Section"]) -> "Section":
        try:
            return handler(values)
        except ValidationError as error:
            raise _setting_error(cls, error) from error


def _setting_error(section: type[Section], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else section.__name__
    if first["type"] == "extra_forbidden":
        return ConfigError(
            f"unknown setting {name!r}",
            where=section.__name__,
            hint=did_you_mean(name, section.model_fields),
        )
    reason = first["msg"].removeprefix("Value error, ")
    field = section.model_fields.get(name)
    value = first["input"]
    text = value if isinstance(value, str) and _NUMBER.fullmatch(value) else repr(value)
    return ConfigError(
        f"`{name}` can't be {text[:200]}: {reason[0].lower()}{reason[1:]}",
        where=f"`{name}`",
        hint=f"`{name}`: {field.description if field else 'a mapping'}",
    )


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
        share = Decimal(text.removesuffix("%").strip()).scaleb(-2)  # as written: rounded once
    except (ValueError, ArithmeticError) as error:
        raise ValueError(
            "a number in the metric's own units (0.01) or a share of it (1%) is wanted"
        ) from error
    if not 0 <= amount < float("inf"):
        raise ValueError("it must be 0 or more")
    if not text.endswith("%"):
        return Drop(amount)
    return Drop(float(share), True)


AllowedDrop: TypeAlias = Annotated[
    Drop | None, BeforeValidator(_parsed), PlainSerializer(lambda drop: drop and str(drop))
]
