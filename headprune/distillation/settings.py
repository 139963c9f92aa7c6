"""What transformers' Trainer is told: our defaults, the user's options, and any other of its arguments, checked first."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from headprune.errors import ConfigError, did_you_mean

_NO_LABELS = "no label is read here"
_NO_DROPOUT = "the student runs without dropout, as its teacher does, and this acts only with it"
_ONE_PROCESS = "heal runs in one process, on one device"
_SAVED_BY_US = "upload the healed directory when it is there"
# Arguments that are settled elsewhere, or that would do nothing, with what to do instead.
_SETTLED = {
    "output_dir": "say --run DIR",
    "num_train_epochs": "say --epochs",
    "max_steps": "say --max-steps",
    "learning_rate": "say --learning-rate",
    "seed": "say --seed",
    "use_cpu": "say --device cpu",
    "resume_from_checkpoint": "say --resume",
    "remove_unused_columns": "rows are no data set of columns here",
    "disable_tqdm": "say --quiet",
    "use_cache": "training fills no cache",
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "heal trains"),
    **dict.fromkeys(("label_names", "label_smoothing_factor"), _NO_LABELS),
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_checkpointing", "neftune_noise_alpha"), _NO_DROPOUT
    ),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "local_rank"), _ONE_PROCESS),
    **dict.fromkeys(("parallelism_config", "accelerator_config"), _ONE_PROCESS),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token"), _SAVED_BY_US),
    "use_liger_kernel": "it would patch the model's code",
}
_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "warmup_steps": 0.1,
    "logging_steps": 0.1,
    "save_steps": 0.1,
    "save_total_limit": 1,
    "report_to": "none",
    "remove_unused_columns": False,
    "disable_tqdm": True,
}


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` pairs as arguments of Trainer, each of the type that its field has.

    Raises:
        ConfigError: A pair is none, its key is no argument or is settled elsewhere, or its value is of another type.
    """
    known: dict[str, Any] = {
        field.name: field.type for field in fields(TrainingArguments) if field.init
    }
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        where = f"--trainer {pair}"
        if not equals:
            raise ConfigError(
                f"{pair!r} is no setting",
                where=where,
                hint="write it like --trainer weight_decay=0.01",
            )
        if name not in known:
            free = [word for word in known if word not in _SETTLED]
            raise ConfigError(
                f"Trainer has no argument {name!r}", where=where, hint=did_you_mean(name, free)
            )
        if name in _SETTLED:
            raise ConfigError(f"{name} can't be set this way", where=where, hint=_SETTLED[name])
        try:
            found[name] = TypeAdapter(known[name]).validate_python(value.strip())
        except ValidationError as error:
            raise ConfigError(
                f"{name} can't be {value!r}: {error.errors()[0]['msg'].lower()}",
                where=where,
                hint="see transformers.TrainingArguments for what it takes",
            ) from error
    return found


def trainer_settings(
    *, pairs: Sequence[str], own: Mapping[str, Any], folder: Path, device: str
) -> TrainingArguments:
    """Return the arguments of Trainer: ours, then what options say, then ``--trainer``.

    Args:
        pairs: ``key=value``, as the user wrote them.
        own: Arguments that have options of their own; None means that nothing was said.
        folder: Where checkpoints go.
        device: Type of the device that the models are on.

    Raises:
        ConfigError: An argument isn't one, or can't be used.
    """
    said = {name: value for name, value in own.items() if value is not None}
    settings = {**_DEFAULTS, **said, **parse_pairs(pairs)}
    try:
        made = TrainingArguments(
            output_dir=str(folder),
            use_cpu=device == "cpu",
            **{"dataloader_pin_memory": device == "cuda", **settings},
        )
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"Trainer refuses these settings: {str(error).strip().splitlines()[0]}",
            where=f"--trainer {' --trainer '.join(pairs)}" if pairs else "heal's options",
            hint="see transformers.TrainingArguments for what goes together",
        ) from error
    if made.n_gpu > 1:
        # Several GPUs would each get a replica (DataParallel), which hooks on cut layers don't survive.
        made._n_gpu = 1
    return made
