"""Where the heads of a model are: asked of a tiny random clone of its class, then found in the model itself."""

import torch
from transformers import PreTrainedModel

from headprune.anatomy.clone import tiny_clone, tiny_inputs
from headprune.anatomy.exceptions import REASONS
from headprune.anatomy.locate import locate
from headprune.anatomy.ownership import Pattern, find_patterns
from headprune.anatomy.sites import Anatomy, Attribute, Run, Site, Slice
from headprune.anatomy.trace import record
from headprune.errors import UnsupportedError

__all__ = ["Anatomy", "Attribute", "Pattern", "Run", "Site", "Slice", "locate", "probe"]


def probe(
    model: PreTrainedModel,
) -> tuple[PreTrainedModel, tuple[Pattern, ...], dict[str, str]]:
    """Build the tiny clone of ``model`` and ask it where its heads are.

    Returns:
        The clone, its attentions, and the reason for each attention that was not understood.

    Raises:
        UnsupportedError: No clone can be built or run, or it has no attention that was understood.
    """
    clone = tiny_clone(model)
    model_type = model.config.model_type
    try:
        with torch.enable_grad():
            events = record(clone, tiny_inputs(clone))
            patterns, refused = find_patterns(clone, events)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        raise UnsupportedError(
            f"model type {model_type!r} is not supported: a small copy of it doesn't run on token ids ({error})",
            where=f"{type(model).__name__} (config.json: model_type)",
            hint="models that read tokens in one stack (encoders and decoders) are supported",
        ) from error
    if not patterns:
        reason = REASONS.get(model_type) or next(
            iter(refused.values()), "no attention of it goes through transformers' interface"
        )
        raise UnsupportedError(
            f"model type {model_type!r} is not supported: {reason}",
            where=f"{type(model).__name__} (config.json: model_type)",
            hint="BERT-like encoders, GPT-2 and Llama-like decoders are supported",
        )
    return clone, patterns, refused
