"""A model without memory: every name and shape, no number. What looking and planning need."""

from typing import Any

import torch
from transformers import PreTrainedModel

from headprune.anatomy.clone import quiet
from headprune.checkpoint.load import model_class, modernised
from headprune.errors import ModelError
from headprune.models import ModelSource


def empty_model(source: ModelSource) -> PreTrainedModel:
    """Build the model of a config on the meta device, in the dtype the config names; no weights are read.

    Raises:
        ModelError: No model can be built from the config.
    """
    source = modernised(source, None)
    kind: Any = model_class(source, None)
    try:
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = kind._from_config(
                source.config, dtype=source.config.dtype or torch.float32
            )
    except Exception as error:
        raise ModelError(
            f"no {kind.__name__} can be built from the config: {str(error).strip().splitlines()[0]}",
            where=str(source.directory / "config.json"),
            hint="repair config.json",
        ) from error
    model.eval()
    return model
