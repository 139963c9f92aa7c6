"""What the user sets of a training, checked first: arguments of transformers' Trainer, LoRA adapters, checkpoints to go on from.

Checkpoints lie in a folder that says what they are of: only the very same training goes on from them.
"""

import json
import re
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.pytorch_utils import Conv1D

from headprune.anatomy.sites import Anatomy
from headprune.artefact import dump_json
from headprune.errors import CheckpointError, ConfigError, UnsupportedError, did_you_mean
from headprune.runtime.files import write_text
from headprune.runtime.launcher import divided, launched_size
from headprune.runtime.targets import refuse_unwritable
from headprune.untrusted.documents import read_json

_HINT = "see transformers.TrainingArguments for what it takes"
# Arguments of Trainer that are settings of headprune.
_SETTINGS = {
    "output_dir": "run_dir",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "seed": "seed",
    "use_cpu": "device",
    "resume_from_checkpoint": "resume",
    "disable_tqdm": "quiet",
}
# Arguments that have no place here, by the reason.
_REFUSED = {
    "a distillation only trains, on rows without labels": (
        "do_train do_eval do_predict label_names label_smoothing_factor remove_unused_columns use_cache"
    ),
    "the student runs without dropout, as its teacher does, and this acts only with it": (
        "gradient_checkpointing activation_checkpointing neftune_noise_alpha"
    ),
    "each process trains the whole model, on one device, by the model's own code": (
        "deepspeed fsdp fsdp_config local_rank parallelism_config accelerator_config use_liger_kernel"
    ),
    "upload the healed directory when it is there": "push_to_hub hub_model_id hub_token",
}
_REASONS = {
    **{name: f"set `{field}`" for name, field in _SETTINGS.items()},
    **{name: reason for reason, names in _REFUSED.items() for name in names.split()},
}
_ROWS, _TIMES = "per_device_train_batch_size", "gradient_accumulation_steps"
_DEFAULTS: dict[str, Any] = {
    _ROWS: 16,
    "per_device_eval_batch_size": 16,
    **dict.fromkeys(("warmup_steps", "logging_steps"), 0.1),
    "save_strategy": "no",  # but by time
    "save_total_limit": 1,
    "report_to": "none",
    "remove_unused_columns": False,
    "disable_tqdm": True,
}


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` pairs as arguments of Trainer, each of the type that its field has.

    Raises:
        ConfigError: A pair isn't one, its key is no argument or has no place here, or its value is of another type.
    """
    known: dict[str, Any] = {
        field.name: field.type for field in fields(TrainingArguments) if field.init
    }
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        where = f"`trainer={pair}`"
        if not equals:
            hint = "write it like `trainer=weight_decay=0.01`"
            raise ConfigError(f"{pair!r} is no setting", where=where, hint=hint)
        if name not in known:
            hint = did_you_mean(name, [word for word in known if word not in _REASONS])
            raise ConfigError(f"Trainer has no argument {name!r}", where=where, hint=hint)
        if name in _REASONS:
            raise ConfigError(f"{name} can't be set this way", where=where, hint=_REASONS[name])
        try:
            arguments[name] = TypeAdapter(known[name]).validate_python(value.strip())
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            what = f"{name} can't be {value!r}: {reason}"
            raise ConfigError(what, where=where, hint=_HINT) from error
    return arguments


def saves_by_time(pairs: Sequence[str]) -> bool:
    """Whether checkpoints are written by time: where the user doesn't say when."""
    return not parse_pairs(pairs).keys() & {"save_strategy", "save_steps"}


def trainer_settings(
    *, pairs: Sequence[str], own: Mapping[str, Any], folder: Path, device: str
) -> TrainingArguments:
    """Return the arguments of Trainer: our defaults, then ``own`` (None leaves the default), then ``pairs``.

    Raises:
        ConfigError: An argument isn't one, or can't be used.
    """
    given = {name: value for name, value in own.items() if value is not None}
    settings = {"dataloader_pin_memory": device == "cuda", **_DEFAULTS, **given}
    asked = parse_pairs(pairs)
    settings |= {"save_strategy": "steps", **asked} if "save_steps" in asked else asked
    settings[_ROWS], settings[_TIMES] = divided(settings[_ROWS], settings.get(_TIMES, 1))
    try:
        arguments = TrainingArguments(output_dir=str(folder), use_cpu=device == "cpu", **settings)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"Trainer refuses these settings: {str(error).strip().splitlines()[0]}",
            where=f"`trainer={', '.join(pairs)}`" if pairs else "the settings of the training",
            hint=_HINT,
        ) from error
    if arguments.world_size != launched_size():
        raise ConfigError(
            f"{launched_size()} processes were started, and Trainer trains in {arguments.world_size}",
            where="torchrun, accelerate launch",
            hint="use a launcher that sets LOCAL_RANK, on CPUs or CUDA; or one process",
        )
    if arguments.n_gpu > 1:
        # Several GPUs would each get a replica (DataParallel), which hooks on cut layers don't survive.
        arguments._n_gpu = 1
    return arguments


def refuse_adapters(anatomy: Anatomy) -> None:
    """Refuse adapters where they'd do nothing, or something else than what they say; and where PEFT isn't there.

    Raises:
        ConfigError: PEFT isn't installed.
        UnsupportedError: An attention passes its weights to a function, so that no adapter would be run; or has padded heads,
            whose dead weight a merged adapter would bring to life.
    """
    try:
        import peft  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ConfigError(
            "adapters need the package peft, which isn't installed",
            where="`lora`",
            hint="pip install 'headprune[heal]', or pip install peft",
        ) from error
    for site in anatomy.sites:
        if site.execution == "full_size_weights":
            what = (
                f"{site.id} passes its weights to a function, so an adapter on them would never run"
            )
            raise UnsupportedError(what, where="`lora`", hint="heal without `lora`")
        if site.padding:
            raise UnsupportedError(
                f"{site.id} has padded heads, and a merged adapter would fill their zero rows",
                where="`lora`",
                hint="heal without `lora`, or prune with `gqa=group` or `gqa=even`",
            )


def linear_layers(
    model: PreTrainedModel, *, within: Collection[str] | None = None
) -> dict[str, nn.Linear | Conv1D]:
    """Return the linear layers below a model's head that have weights, by path; of these, those whose weight ``within`` names."""
    body = model.base_model
    prefix = "" if body is model else f"{model.base_model_prefix}."
    return {
        f"{prefix}{name}": module
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module.weight.numel()
        and (within is None or f"{prefix}{name}.weight" in within)
    }


def add_adapters(
    model: PreTrainedModel, *, rank: int, within: Collection[str] | None = None
) -> Any:
    """Return ``model`` with a fresh adapter of ``rank`` on every linear layer below its head; all else is frozen.

    With ``within``, only layers get one whose weight is named there.

    ``W + (2 rank / rank) B A`` with B zero at first (Hu et al. 2021), so nothing is changed yet; layers that lost all their
    rows or columns get none. A is drawn from the global random state.
    """
    from peft import LoraConfig, get_peft_model

    linears = linear_layers(model, within=within)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(linears),
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in linears.values()),
    )
    with warnings.catch_warnings():
        # PEFT still asks for what transformers has renamed.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.*", FutureWarning)
        return get_peft_model(model, config)


_FACTS = "heal.json"
_STATE = "trainer_state.json"
"""What Trainer writes last of a checkpoint."""


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints, and the one to go on from."""

    folder: Path
    last: Path | None

    def drop(self) -> None:
        """Remove the checkpoints: the healed model is saved elsewhere. What else lies there, or can't be removed, stays."""
        for path in filter(_is_checkpoint, _named_like_checkpoints(self.folder)):
            # First what says that it is whole: should we be stopped here, nobody goes on from the rest.
            with suppress(OSError):
                (path / _STATE).unlink()
            shutil.rmtree(path, ignore_errors=True)
        # What is left of ours stays ours, so that the next training may replace it.
        if not any(map(_is_checkpoint, _named_like_checkpoints(self.folder))):
            with suppress(OSError):
                (self.folder / _FACTS).unlink(missing_ok=True)
                self.folder.rmdir()  # unless something of the user's lies there


def open_checkpoints(folder: Path, *, facts: Mapping[str, Any], resume: bool) -> Checkpoints:
    """Return the checkpoints in ``folder`` of the training that ``facts`` define; with ``resume``, to go on from the last.

    Raises:
        CheckpointError: There is none to go on from, or it is of another training; or there are some and ``resume`` is off,
            or some that aren't ours.
    """
    where = f"`run_dir={folder}`"
    refuse_unwritable(folder / _FACTS, where=where)
    old = _read_facts(folder)
    _refuse_foreign_checkpoints(folder, is_ours=old.get("format") == 1, where=where)
    last, text = last_checkpoint(folder), dump_json({"format": 1, **facts})
    if not resume:
        if last is not None:
            raise CheckpointError(
                f"{folder} holds checkpoints of a training that was stopped",
                where=where,
                hint="`resume=True` goes on from there; or choose another `run_dir`, or remove it",
            )
        write_text(folder / _FACTS, text)
        return Checkpoints(folder, None)
    if last is None:
        raise CheckpointError(
            f"there is no checkpoint in {folder} to go on from",
            where="`resume=True`",
            hint="leave out `resume`, or name the folder with `run_dir`",
        )
    new = json.loads(text)
    different = [name for name in new if old.get(name) != new[name]]
    if different:
        name = different[0]
        raise CheckpointError(
            f"the checkpoints are of another training ({', '.join(different)}: {old.get(name)!r}, and now {new[name]!r})",
            where=f"{folder / _FACTS}",
            hint="give the settings that it was started with, or start anew with another `run_dir`",
        )
    return Checkpoints(folder, last)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint that Trainer finished in a folder; transformers' own search takes half-written ones, too."""
    finished = [
        path
        for path in _named_like_checkpoints(folder)
        if _is_checkpoint(path) and _read(path / _STATE) is not None
    ]
    return max(finished, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _refuse_foreign_checkpoints(folder: Path, *, is_ours: bool, where: str) -> None:
    """Refuse a folder with what Trainer would take for its own checkpoints, remove or go on from, and isn't."""
    foreign = [
        path for path in _named_like_checkpoints(folder) if not (is_ours and _is_checkpoint(path))
    ]
    if (folder / _FACTS).exists() and not is_ours:
        foreign.append(folder / _FACTS)
    if foreign:
        raise CheckpointError(
            f"{foreign[0].name} in {folder} isn't of a training by headprune",
            where=where,
            hint="choose another `run_dir`, or move it elsewhere: Trainer removes old checkpoints",
        )


def _named_like_checkpoints(folder: Path) -> list[Path]:
    """Return what Trainer would take for checkpoints by their names."""
    return sorted(folder.glob("*checkpoint-*")) if folder.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    named = re.fullmatch(r"checkpoint-\d+", path.name, re.ASCII)
    return named is not None and path.is_dir() and not path.is_symlink()


def _read_facts(folder: Path) -> dict[str, Any]:
    """Return what a folder says of itself; a folder that says nothing isn't ours, and nothing of it is loaded."""
    facts = _read(folder / _FACTS)
    return facts if isinstance(facts, dict) else {}


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except CheckpointError:
        return None
