"""Arguments of transformers' Trainer: our defaults, the user's settings, and any other argument, checked first."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from headprune.errors import ConfigError, did_you_mean

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
    "training runs in one process, on one device, by the model's own code": (
        "deepspeed fsdp fsdp_config local_rank parallelism_config accelerator_config use_liger_kernel"
    ),
    "upload the healed directory when it is there": "push_to_hub hub_model_id hub_token",
}
_REASONS = {
    **{name: f"set `{field}`" for name, field in _SETTINGS.items()},
    **{name: reason for reason, names in _REFUSED.items() for name in names.split()},
}
_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    **dict.fromkeys(("warmup_steps", "logging_steps", "save_steps"), 0.1),
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


def trainer_settings(
    *, pairs: Sequence[str], own: Mapping[str, Any], folder: Path, device: str
) -> TrainingArguments:
    """Return the arguments of Trainer: our defaults, then ``own``, then ``pairs``.

    Args:
        pairs: ``key=value``, as the user wrote them.
        own: Arguments that have settings of their own; None leaves the default.
        folder: Where checkpoints go.
        device: Type of the device that the models are on.

    Raises:
        ConfigError: An argument isn't one, or can't be used.
    """
    given = {name: value for name, value in own.items() if value is not None}
    settings = {"dataloader_pin_memory": device == "cuda", **_DEFAULTS, **given}
    settings |= parse_pairs(pairs)
    try:
        arguments = TrainingArguments(output_dir=str(folder), use_cpu=device == "cpu", **settings)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"Trainer refuses these settings: {str(error).strip().splitlines()[0]}",
            where=f"`trainer={', '.join(pairs)}`" if pairs else "the settings of the training",
            hint=_HINT,
        ) from error
    if arguments.n_gpu > 1:
        # Several GPUs would each get a replica (DataParallel), which hooks on cut layers don't survive.
        arguments._n_gpu = 1
    return arguments
