"""A model without memory: every name and shape, no number. What looking and planning need."""

from transformers import PreTrainedModel

from headprune.checkpoint.load import build_empty, model_class, modernised
from headprune.models import ModelSource


def empty_model(source: ModelSource) -> PreTrainedModel:
    """Build the model of a config on the meta device, in the dtype the config names; no weights are read.

    Raises:
        ModelError: No model can be built from the config.
    """
    source = modernised(source, None)
    return build_empty(source, model_class(source, None))
