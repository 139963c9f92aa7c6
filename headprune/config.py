"""The recipe: every setting of a run, from the command line, a YAML file, or the defaults, in this order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headprune.drop import AllowedDrop
from headprune.errors import ConfigError, did_you_mean, first_line
from headprune.method_names import MethodName
from headprune.precedence import BUDGETS, TARGETS, merged, refuse_second_budget
from headprune.untrusted.documents import MOST_BYTES_OF_YAML, parse_yaml, read_text

RECIPE_FILE = "headprune.yaml"

METRIC_NAMES = (
    *("spearman", "pearson", "accuracy", "f1"),
    *("matthews_correlation", "perplexity"),
)
"""The built-in metrics. Any other is a script that ``evaluate`` runs."""

MAX_LENGTH = 128
"""The longest input in tokens, where neither the user nor the model says another."""

# Libraries take sizes as they are, and some take none larger.
_MOST = 2**31 - 1

OF_THE_ROWS = (
    *("task", "data", "split", "eval_data", "eval_split", "text", "label", "max_length"),
    *("metric", "higher_is_better", "limit", "num_samples", "seed"),
)
"""Settings that define the rows of a run and how they are judged: all that is ever taken from a model's record."""


_LISTS = ("text", "protect", "sites", "methods", "points", "latency_length", "latency_batch")

RECIPES: dict[str, dict[str, Any]] = {
    "michel": {"method": "gradient", "normalize": "layer", "steps": 1, "reconstruct": "none"},
    "kwon": {"method": "fisher:batch", "rearrange": True, "steps": 1, "reconstruct": "scale"},
    "flap": {
        "method": "fluctuation:channel",
        "steps": 1,
        "reconstruct": "bias",
        "allow_bias": True,
    },
    "minitron": {"method": "activation", "uniform": True, "steps": 1, "reconstruct": "none"},
}
"""What others do, in these settings: Michel et al. 2019, Kwon et al. 2022, An et al. 2024 (FLAP), Muralidharan et al. 2024."""


class Recipe(BaseModel):
    """All settings. Names are the long options' names with underscores; a YAML recipe uses the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_min_length=1)

    model: str | None = None
    revision: str | None = None
    stock_class: bool = False
    task: str | None = None
    data: str | None = None
    split: str | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    max_length: int | None = Field(None, ge=2, le=_MOST)
    metric: str | None = None
    higher_is_better: bool | None = None

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    limit: int | None = Field(None, ge=2)
    latency: bool = True
    latency_length: tuple[Annotated[int, Field(ge=1, le=_MOST)], ...] = ()
    latency_batch: tuple[Annotated[int, Field(ge=1, le=_MOST)], ...] = ()
    compile: bool = False
    until: Literal["decided"] | None = None
    max_work: float = Field(1 / 3, gt=0, le=1)

    method: MethodName | None = None
    recipe: Literal["michel", "kwon", "flap", "minitron"] | None = None
    objective: Literal["loss", "metric", "distill"] = "loss"
    normalize: Literal["none", "layer", "standard"] = "none"
    steps: int | None = Field(None, ge=1, le=10_000)
    num_samples: int = Field(1024, ge=1)

    keep: float | None = Field(None, gt=0, le=1)
    heads: int | None = Field(None, ge=1)
    target_parameters: str | None = None
    target_flops: str | None = None
    target_kv_cache: str | None = None
    target_latency: str | None = None
    multiple_of: int = Field(1, ge=1)
    min_heads: int = Field(1, ge=0)
    protect: tuple[str, ...] = ()
    uniform: bool = False
    gqa: Literal["group", "even", "pad"] = "group"
    sites: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    points: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    rearrange: bool = False
    reconstruct: Literal["none", "best", "scale", "bias", "refit"] | None = None
    allow_bias: bool = False

    teacher: str | None = None
    epochs: float = Field(3, gt=0)
    max_steps: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    lora: int | None = Field(None, ge=1, le=_MOST)
    trainer: tuple[str, ...] = ()

    run: str | None = None
    scores: str | None = None
    out: str | None = None
    overwrite: bool = False
    allow_pickle: bool = False

    baseline: str | None = None
    max_drop: AllowedDrop = None
    min_recovery: float | None = Field(None, gt=0)
    max_parameters: int | None = Field(None, ge=0)
    max_latency_increase: float | None = Field(None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: Any) -> Any:
        """Take ``text: a,b`` for ``text: [a, b]``, ``batch_size: auto`` for none, and a bare number for a target."""
        if not isinstance(values, dict):
            return values
        for name in _LISTS:
            said = values.get(name)
            items = [said] if isinstance(said, str) else said
            if isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items):
                parts = [part.strip() for item in items for part in item.split(",")]
                values = {**values, name: [part for part in parts if part] or parts[:1]}
        if values.get("batch_size") == "auto":
            values = {**values, "batch_size": None}
        numbers = [name for name in TARGETS if isinstance(values.get(name), int | float)]
        return {**values, **{name: str(values[name]) for name in numbers}}

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Put in what a recipe of others says, where nothing else was said."""
        name = values.get("recipe") if isinstance(values, dict) else None
        return {**RECIPES.get(str(name), {}), **values} if name else values

    @property
    def budgets(self) -> dict[str, float | int | str]:
        """The budgets that are set, by name; more than one contradict each other."""
        said = {name: getattr(self, name) for name in BUDGETS}
        return {name: value for name, value in said.items() if value is not None}

    def to_yaml(self) -> str:
        """Return the settings that differ from the defaults, as a YAML recipe."""
        return yaml.safe_dump(
            # What a recipe of others says is in the settings already.
            self.model_dump(mode="json", exclude_defaults=True, exclude={"recipe"}),
            sort_keys=False,
            allow_unicode=True,
        )


DEMO = Recipe(
    model="demo:minilm",
    task="similarity",
    data="demo:stsb",
    split="train",
    eval_data="demo:stsb",
    eval_split="test",
)
"""The built-in demo: all-MiniLM-L6-v2, scored on STS-B train, reported on STS-B test."""


def load_recipe(
    settings: Mapping[str, Any],
    *,
    file: Path | None = None,
    folder: Path | None = None,
    trust_metric_code: bool = False,
    measures: bool = False,
) -> tuple[Recipe, str]:
    """Put a recipe together.

    Args:
        settings: What the command line said; None means it said nothing.
        file: A YAML recipe. Without one, ``headprune.yaml`` of ``folder`` is used where there is one; without that, and
            where neither a model nor data were named, the built-in demo.
        folder: Where to look for ``headprune.yaml``; the working directory by default. One that lies beside a model is the
            record of that model, and no settings.
        trust_metric_code: Whether a metric that the file names, and that isn't built in, may be loaded: it is code.
        measures: Whether the command reads one data set, which it measures.

    Returns:
        The recipe, and a sentence that says where its settings come from.

    Raises:
        ConfigError: The file can't be read, a key is unknown, a value is out of range, or it names code that isn't trusted.
    """
    said = {name: value for name, value in settings.items() if value is not None}
    # A recipe that was named goes before what a file says.
    said = {**RECIPES.get(str(said.get("recipe")), {}), **said}
    refuse_second_budget(said)
    aside = ""
    found = (folder or Path()) / RECIPE_FILE
    if file is None and found.is_file():
        if is_record(found):
            aside = f" ({found} is the record of the model beside it and no settings; -c {found} makes it so)"
        else:
            file = found
    if file is not None:
        read = _read_yaml(file)
        if "metric" not in said and not trust_metric_code:
            _refuse_metric_code(read.get("metric"), file)
        where = "./" if file == found and folder is None else ""
        settings = merged(read, said, measures=measures)
        return _validated(settings, str(file)), f"settings from {where}{file}"
    if "model" not in said and "data" not in said:
        defaults = DEMO.model_dump(exclude_defaults=True)
        return _validated({**defaults, **said}, "command line"), (
            f"no MODEL, no {RECIPE_FILE}: the built-in demo (all-MiniLM-L6-v2 on STS-B){aside}"
        )
    return _validated(said, "command line"), f"settings from the command line{aside}"


def is_record(file: Path) -> bool:
    """Whether a recipe file lies beside a model, as the record of how it was made."""
    return any((file.parent / name).exists() for name in ("config.json", "manifest.json"))


def recorded_rows(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what the record of a model says of its rows, and the settings of that kind that aren't taken from it.

    Nothing else of a record is read: whoever made the directory made it, and its user named the directory alone.

    Raises:
        ConfigError: The record can't be read, or a value is out of range.
    """
    read = _read_yaml(file, any_name=True)
    rows = {name: read[name] for name in OF_THE_ROWS if name in read}
    refused: tuple[str, ...] = ()
    if rows.get("metric") not in (None, *METRIC_NAMES):
        refused = (f"metric: {rows['metric']}",)
        rows = {k: v for k, v in rows.items() if k not in ("metric", "higher_is_better")}
    recipe = _validated(rows, str(file))
    return {name: getattr(recipe, name) for name in rows}, refused


def _refuse_metric_code(metric: Any, file: Path) -> None:
    """Refuse a metric that a file names and that is somebody's script.

    Raises:
        ConfigError: It is one.
    """
    if metric is not None and metric not in METRIC_NAMES:
        raise ConfigError(
            f"the metric {str(metric)[:100]!r} isn't built in: it is code, and {file} names it",
            where=f"{file} (metric)",
            hint="say --metric yourself, or --trust-metric-code if you trust the file; built in: "
            + ", ".join(METRIC_NAMES),
        )


def _read_yaml(file: Path, *, any_name: bool = False) -> dict[str, Any]:
    text = read_text(
        file,
        error=ConfigError,
        hint="check the path",
        most_bytes=MOST_BYTES_OF_YAML,
        called="the recipe",
    )
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(
            f"the recipe is not YAML: {first_line(error)}",
            where=f"--config {file}",
            hint="check the indentation; a recipe is a list of `name: value` lines",
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"the recipe is a {type(content).__name__}, not a mapping",
            where=f"--config {file}",
            hint="write `name: value` lines",
        )
    for name in () if any_name else content:
        if name not in Recipe.model_fields:
            raise ConfigError(
                f"unknown setting {name!r}",
                where=f"--config {file}",
                hint=did_you_mean(str(name), Recipe.model_fields),
            )
    return {str(name): value for name, value in content.items()}


def _validated(values: Mapping[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        option = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
        why = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{option} can't be {repr(first['input'])[:200]}: {why[0].lower()}{why[1:]}",
            where=where,
            hint=f"the command's --help tells what {option} takes",
        ) from error
