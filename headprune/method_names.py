"""The names of the scoring methods, said once. Nothing heavy is imported here: the command line's help shows them."""

from typing import Literal, get_args

MethodName = Literal[
    "gradient",
    "gradient:token",
    "gradient:batch",
    "unique",
    "fisher",
    "fisher:batch",
    "ablation",
    "shapley",
    "gates",
    "activation",
    "fluctuation",
    "fluctuation:channel",
    "confidence",
    "entropy",
    "sink",
    "magnitude",
    "random",
]
METHOD_NAMES: tuple[str, ...] = get_args(MethodName)
