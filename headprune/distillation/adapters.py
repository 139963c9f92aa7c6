"""LoRA adapters, by PEFT, on every linear layer below the head."""

import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Anatomy
from headprune.errors import ConfigError, UnsupportedError


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


def add_adapters(model: PreTrainedModel, *, rank: int) -> Any:
    """Return ``model`` with a fresh adapter of ``rank`` on every linear layer below its head; all else is frozen.

    ``W + (2 rank / rank) B A`` with B zero at first (Hu et al. 2021), so nothing is changed yet; layers that lost all their
    rows or columns get none. A is drawn from the global random state.
    """
    from peft import LoraConfig, get_peft_model

    body = model.base_model
    prefix = "" if body is model else f"{model.base_model_prefix}."
    linears = {
        f"{prefix}{name}": module
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight.numel()
    }
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
