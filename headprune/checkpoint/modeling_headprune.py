"""Loads a model whose attention heads were pruned. Lies beside the weights; needs only torch and transformers.

``AutoModel....from_pretrained(directory, trust_remote_code=True)`` builds the stock model, cuts the attention to the sizes noted
in ``config.json`` under ``headprune``, and then fills in the weights. Written by headprune (Apache-2.0).
"""

import transformers
from torch import nn
from transformers import PreTrainedConfig


def shrink(model, record):
    """Give the parameters and integers of ``model`` the sizes in ``record["sites"]``; values are filled in afterwards."""
    prefix = "" if model.base_model is model else model.base_model_prefix + "."
    for path, site in record["sites"].items():
        for name, shape in site["shapes"].items():
            owner, _, leaf = (prefix + name).rpartition(".")
            module = model.get_submodule(owner)
            old = getattr(module, leaf)
            part = old.detach()[tuple(slice(0, size) for size in shape)].clone()
            setattr(module, leaf, nn.Parameter(part, requires_grad=old.requires_grad))
            if leaf == "weight" and isinstance(module, nn.Linear):
                module.out_features, module.in_features = shape
            elif leaf == "weight" and hasattr(module, "nf"):  # transformers' Conv1D
                module.nx, module.nf = shape
        for name, value in site["attributes"].items():
            setattr(model.get_submodule(prefix + path), name, value)


class HeadPrunedMixin:
    """Cuts a freshly built stock model to its pruned sizes."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        # A model that wraps others builds them through their stock classes, so this runs once, at the root.
        if "sites" in (getattr(config, "headprune", None) or {}):
            shrink(self, config.headprune)


def __getattr__(name):
    """Make ``HeadPruned<Class>`` for any class of transformers, when it is first asked for."""
    base = getattr(transformers, name.removeprefix("HeadPruned"), None)
    if not name.startswith("HeadPruned") or base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if issubclass(base, PreTrainedConfig):
        # A config class of its own, with the stock model_type: tokenizers and pipelines know what it is.
        made = type(name, (base,), {"__module__": __name__})
    else:
        config_class = globals().get("HeadPruned" + base.config_class.__name__) or __getattr__(
            "HeadPruned" + base.config_class.__name__
        )
        made = type(
            name,
            (HeadPrunedMixin, base),
            {"__module__": __name__, "config_class": config_class},
        )
        _keep_weight_conversions(name, base)
    globals()[name] = made
    return made


def _keep_weight_conversions(name, base):
    """Rename and fuse weights at loading as the stock class does: transformers skips that for classes it doesn't know."""
    try:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )
    except ImportError:  # older transformers have no conversions
        return
    mapping = get_checkpoint_conversion_mapping(base.__name__) or get_checkpoint_conversion_mapping(
        base.config_class.model_type
    )
    if mapping is not None:
        register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
