"""A session: a model that was opened once, with its task, its proven anatomy, and how work on it runs."""

import inspect as python_inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from headprune import demo
from headprune.anatomy.clone import config_value, pruning_record
from headprune.anatomy.exceptions import reads_in_blocks
from headprune.anatomy.sites import Anatomy
from headprune.artefact import read_artefact
from headprune.batch import Batch
from headprune.config import MAX_LENGTH, DataSpec, ModelSpec, Settings
from headprune.errors import ConfigError, PlanError
from headprune.inspection import inspect
from headprune.models.find import ModelSource, find
from headprune.models.load import load_model
from headprune.models.tokenizer import load_tokenizer, tokenizing
from headprune.passes import Progress, RunContext
from headprune.placement import describe, fingerprint
from headprune.plans import HeadScores
from headprune.results import Results
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal
from headprune.runtime.local import published_name
from headprune.tasks.batches import Fill, InputFormat, ignore
from headprune.tasks.catalogue import METRICS, require_metric, task_row
from headprune.tasks.distill import Objective
from headprune.tasks.load_metric import metric_for, objective_for
from headprune.tasks.metrics import Metric
from headprune.tasks.model_inputs import filling, longest_row, refuse_reading_ahead
from headprune.tasks.plain import plain_task
from headprune.tasks.rows import Example, check_source
from headprune.tasks.task import Task, detect_task, for_outputs, get_task, refuse_other_head


@dataclass(frozen=True)
class Session:
    """An open model.

    Args:
        settings: All settings; a stage takes its section.
        source: Where the model came from.
        model: The model.
        tokenizer: Its tokenizer.
        task: What it is for.
        progress: Where progress is reported.
        world: The processes that share the work.
        custom_metric: The metric, where it isn't built in: it was loaded and tried before the model.
    """

    settings: Settings
    source: ModelSource
    model: PreTrainedModel
    tokenizer: Any
    task: Task
    progress: Progress
    world: World = field(default_factory=World)
    custom_metric: Metric | None = None
    _batches: dict[int, tuple[Any, tuple[Batch, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where the heads of the model are, as it was opened; attentions that are left out are reported.

        Raises:
            PlanError: No head can be pruned.
        """
        return proven_anatomy(self.model, name=self.source.name, progress=self.progress)

    @cached_property
    def note(self) -> dict[str, Any]:
        """The facts about the opened model that artefacts record."""
        return model_note(self.source, self.model)

    @cached_property
    def used_rows(self) -> frozenset[str]:
        """Hashes of the inputs that chose this model's heads in earlier pruning, or that it was healed on."""
        directory = self.source.directory
        if not pruning_record(self.model.config):
            return frozenset()
        hashes: set[str] = set()
        if (path := directory / "scores.json").is_file():
            hashes |= set(read_artefact(HeadScores, path).rows)
        if (path := directory / "results.json").is_file():
            healed = read_artefact(Results, path).heal
            hashes |= set(healed.rows if healed else ())
        return frozenset(hashes)

    def batches(
        self, examples: Sequence[Example], *, batch_size: int | None = None
    ) -> tuple[Batch, ...]:
        """Turn examples into batches; of the settings' size, once for each tuple of examples."""
        size = batch_size or self.settings.data.batch_size
        if batch_size is None and id(examples) in self._batches:
            return self._batches[id(examples)][1]
        with tokenizing(self.source):
            batches = self.task.to_batches(examples, self.input_format(batch_size=size))
        if batch_size is None and isinstance(examples, tuple):  # kept, so that its id stays its own
            self._batches[id(examples)] = (examples, batches)
        return batches

    def input_format(
        self, *, batch_size: int | None = None, notify: Callable[[str], None] = ignore
    ) -> InputFormat:
        """Return how texts become inputs of the model, packed to a budget of tokens where no batch size is given."""
        return InputFormat(
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            config=self.model.config,
            batch_size=batch_size,
            accepts=python_inspect.signature(self.model.forward).parameters.__contains__,
            fill=self._fill,
            notify=notify,
        )

    @cached_property
    def _fill(self) -> Fill:
        """What short rows are padded with; determined when rows of different length first occur."""
        return filling(self.model, self.task.distillation.outputs, self.tokenizer)

    @property
    def metric_name(self) -> str:
        """The name of the metric: that of the settings, or the task's."""
        return self.settings.data.metric or self.task.metric

    @cached_property
    def metric(self) -> Metric:
        """The metric.

        Raises:
            ConfigError: It doesn't compare what the task predicts, or fails on a few rows.
        """
        return self.custom_metric or metric_for(self.task, self.model.config, name=self.metric_name)

    def objective(self, examples: Sequence[Example]) -> Objective:
        """Return what scores measure: the task's loss, its metric, or the distance to the model as it is."""
        batches = self.batches(examples)
        kind, seed = self.settings.score.objective, self.settings.data.seed
        return objective_for(
            self.task, self.model, batches, kind=kind, metric=self.metric, seed=seed
        )

    @cached_property
    def max_length(self) -> int:
        """The longest row in tokens: from the settings or the task, no longer than the model takes."""
        asked = self.settings.data.max_length or self.task.max_length or MAX_LENGTH
        taken = longest_row(self.model, special=self.tokenizer.all_special_ids)
        return min(limit for limit in (asked, self.task.max_length, taken) if limit)

    def context(self, journal: Journal | None = None) -> RunContext:
        """Return how a pass over the data runs, with its results kept in ``journal`` if there is one."""
        progress, compiled = self.progress, self.settings.score.compile
        return RunContext(progress.track, progress.notify, journal, self.world, compiled)


def open_session(
    settings: Settings,
    *,
    progress: Progress,
    world: World | None = None,
    looks: bool = False,
    only_reports: bool = False,
) -> Session:
    """Find and load the model and its tokenizer, and settle the task.

    Args:
        settings: The settings.
        progress: Where progress is reported.
        world: The processes that share the work.
        looks: Whether heads are only looked at, which takes no task: a model that has none here reads texts as they are.
        only_reports: Whether no rows are read but those that report.

    Raises:
        ConfigError: No model is named, or its task or metric can't be settled.
        DataError: A file of rows isn't there, or can't be read.
        ModelError: The model can't be had or loaded.
    """
    world, spec, data = world or World(), settings.model, settings.data
    source = find_model(spec)
    tokenizer = load_tokenizer(source)
    try:
        task = _task(source, data, tokenizer)
    except ConfigError:
        if not looks or data.task is not None:
            raise
        task = plain_task()
    metric = None
    if data.metric not in (None, *METRICS):
        better = data.higher_is_better
        metric = metric_for(task, source.config, name=data.metric, higher_is_better=better)
    if not looks:
        _check_rows(settings, only_reports=only_reports)
    has_own_device = world.size > 1 and spec.device in ("auto", "cuda")
    model = load_model(
        source,
        auto_class=task.auto_class or None,
        device=world.device if has_own_device else spec.device,
        dtype=spec.dtype,
        notify=progress.notify,
    )
    progress.notify(
        f"model {spec.model} ({model.config.model_type}), task {task.name}, on {describe(model)}"
    )
    session = Session(settings, source, model, tokenizer, task, progress, world, metric)
    if session.max_length < (data.max_length or 0):
        reason = reads_in_blocks(partial(config_value, model.config))
        reason = reason or "the model takes no longer ones"
        progress.notify(f"texts are cut at {session.max_length} tokens: {reason}")
    if task.row.reads_forward:
        refuse_reading_ahead(model, special=tokenizer.all_special_ids)
    if task.described:
        progress.notify(
            f"embeddings: {task.described}; texts are cut at {session.max_length} tokens"
        )
    return session


def _check_rows(settings: Settings, *, only_reports: bool) -> None:
    """Refuse rows that can't be read: loading a model takes longer than looking for a file."""
    data, healing = settings.data, settings.distill
    sources = [data.evaluation_source]
    if not only_reports:
        sources += [(data.data, data.split), (healing.heal_data, healing.heal_split)]
    for name, split in sources:
        if name is not None:
            check_source(name, split=split)


def _task(source: ModelSource, data: DataSpec, tokenizer: Any) -> Task:
    """Return what a model is for."""
    name = data.task or detect_task(source.config, model_directory=source.root)
    refuse_other_head(name, source.config, model_directory=source.root)
    name = for_outputs(name, source.config)
    row = task_row(name)
    require_metric(
        data.metric or row.metric, higher_is_better=data.higher_is_better, predicted=row.predicts
    )
    return get_task(name, model_directory=source.root, config=source.config, tokenizer=tokenizer)


def proven_anatomy(model: PreTrainedModel, *, name: str, progress: Progress) -> Anatomy:
    """Return the proven anatomy of the model called ``name``, and report attentions that are left out.

    Raises:
        PlanError: No head can be pruned.
    """
    anatomy = inspect(model)
    for path, reason in anatomy.refused.items():
        progress.notify(f"left whole: {path}: {reason}")
    if not anatomy.heads:
        raise PlanError("the model has no head that can be pruned", where=name, hint="see above")
    return anatomy


def find_model(spec: ModelSpec, *, weights: bool = True) -> ModelSource:
    """Find the model that the settings name; without ``weights`` its config is enough.

    Raises:
        ConfigError: None is named, or a revision of a directory.
        ModelError: The model can't be had.
    """
    name = model_name(spec)
    if spec.revision is not None and (name.startswith(demo.PREFIX) or Path(name).exists()):
        raise ConfigError(
            f"{name} is a directory, and only models of the hub have revisions",
            where=f"`revision={spec.revision}`",
            hint="leave it out, or name the model by its hub id",
        )
    return find(name, revision=spec.revision, weights=weights, stock_class=spec.stock_class)


def model_name(spec: ModelSpec) -> str:
    """Return the model that the settings name.

    Raises:
        ConfigError: They name none.
    """
    if spec.model is None:
        raise ConfigError(
            "no model is named",
            where="`model`",
            hint="name a directory or a hub id, such as demo:minilm",
        )
    return spec.model


def model_note(source: ModelSource, model: PreTrainedModel) -> dict[str, Any]:
    """Return the facts about a model, as it is now, that artefacts record; a pruned model's include its source."""
    note = {
        **origin_of(source),
        "model_type": model.config.model_type,
        "fingerprint": fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    origin = pruning_record(model.config).get("source")
    return {**note, "source": origin} if origin else note


def origin_of(source: ModelSource) -> dict[str, str | None]:
    """Return where a model came from, including its own code that wasn't run."""
    code = {"own_code": source.own_code} if source.own_code else {}
    return {"name": published_name(source.name), "revision": source.revision, **code}
