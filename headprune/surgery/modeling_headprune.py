"""Loads a model whose attention heads were pruned. Lies beside the weights; needs only torch and transformers.

``AutoModel....from_pretrained(directory, trust_remote_code=True)`` builds the stock model, cuts the attention to the sizes noted
in ``config.json`` under ``headprune``, and then fills in the weights. Written by headprune (Apache-2.0).
"""

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

UNEVEN_CACHE = "continuous batching wants as many key/value heads in every layer, and this pruned model has not; use generate()"


def shrink(model, record):
    """Give the parameters and integers of ``model`` the sizes in ``record["sites"]``; values are filled in afterwards."""
    for site in record["sites"].values():
        shrink_site(model, site)


def shrink_site(model, site):
    """Give one attention its sizes."""
    for name, shape in site["shapes"].items():
        owner, _, leaf = name.rpartition(".")
        for module in present(model, owner):
            shrink_parameter(module, leaf, shape)
    for path, values in site["attributes"].items():
        for module in present(model, path):
            for name, value in values.items():
                set_attribute(module, name, value)
    for path, spread in site["spread"].items():
        owner, _, leaf = path.rpartition(".")
        for module in present(model, owner):
            keep_width(module, leaf, **spread)
    for path, parameters in site.get("unfolded", {}).items():
        for module in present(model, path):
            unfold(module, parameters)


def shrink_parameter(module, name, shape):
    """Give a parameter its size."""
    part = getattr(module, name).detach()[tuple(slice(0, size) for size in shape)]
    replace_parameter(module, name, part.clone())
    if not part.numel() and not module._non_persistent_buffers_set:
        # Nothing to initialise; some classes divide by the size of what they do.
        module._is_hf_initialized = True


def present(model, path):
    """Return the module at a path below the base model in a list, which is empty where this class has none."""
    module = find_module(model, path)
    return [] if module is None else [module]


def find_module(model, path):
    """Return the module at a path below the base model; a path outside of it starts with "/".

    None means that this class has no such module: it may be the encoder alone, or lack the head.
    """
    prefix = "" if model.base_model is model else model.base_model_prefix + "."
    try:
        return model.get_submodule(path[1:] if path.startswith("/") else prefix + path)
    except AttributeError:
        return None


def replace_parameter(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put ``value`` in the place of a parameter, and tell a linear layer of its new size. Empty ones don't learn."""
    learns = getattr(module, name).requires_grad and value.numel() > 0
    setattr(module, name, nn.Parameter(value, requires_grad=learns))
    if name == "weight" and isinstance(module, nn.Linear):
        module.out_features, module.in_features = value.shape
    elif name == "weight" and hasattr(module, "nf"):  # transformers' Conv1D: [in, out]
        module.nx, module.nf = value.shape


def set_attribute(module: nn.Module, name: str, value: int) -> None:
    """Set an integer of a module; ``config.x`` is what it reads from its config, which other modules share."""
    if not name.startswith("config."):
        setattr(module, name, value)
        return
    view = module.config if "_values" in vars(module.config) else ConfigView(module.config)
    view.__dict__["_values"][name.removeprefix("config.")] = value
    module.config = view


class ConfigView:
    """A config in which some numbers differ for one module; all else is read from, and written to, the shared one."""

    def __init__(self, config):
        self.__dict__.update(_config=config, _values={})

    def __getattr__(self, name):
        # Copying and pickling ask before there is anything to answer with.
        if name.startswith("__"):
            raise AttributeError(name)
        values = self.__dict__["_values"]
        return values[name] if name in values else getattr(self.__dict__["_config"], name)

    def __setattr__(self, name, value):
        setattr(self.__dict__["_config"], name, value)


def keep_width(owner: nn.Module, name: str, *, side: str, size: int, kept: list) -> None:
    """Let ``owner``'s cut linear layer ``name`` deal with activations as wide as they were before.

    Its output (``side`` is "output") is spread to ``size`` with zeros where indices are gone; of its input ("input") only the
    kept indices are read. ``kept`` lists [start, stop] in the dimension before the cut.
    """
    keeper = _keeper(owner)
    if keeper is None:
        keeper = WidthKeeper()
        owner.register_forward_pre_hook(keeper, prepend=True)
    elif name in keeper.widths:
        keeper.widths[name].leave(getattr(owner, name))
    keeper.widths[name] = (Spread if side == "output" else Gather)(size, kept)
    keeper(owner, ())


def width_kept(owner: nn.Module, name: str) -> dict | None:
    """Return the arguments that ``keep_width`` was given for a linear layer, or None."""
    width = getattr(_keeper(owner), "widths", {}).get(name)
    return width and {"side": width.side, "size": width.size, "kept": width.kept}


def _keeper(owner):
    # Not by class: a model loaded as remote code has classes of its own.
    return next(
        (hook for hook in owner._forward_pre_hooks.values() if hasattr(hook, "widths")), None
    )


class WidthKeeper:
    """A forward pre-hook of the module that calls cut linear layers.

    Adapters (PEFT) and quantisers put a module of their own in the place of a layer: what stands there is what has to deal
    with wide activations, and what it wraps is as narrow as its weights.
    """

    def __init__(self):
        self.widths = {}

    def __call__(self, owner, _args):
        """See that every layer is hooked, whatever stands in its place."""
        for name, width in self.widths.items():
            layer = getattr(owner, name)
            if not width.is_hook_of(layer):
                width.leave(layer)
                width.join(layer)


class _Width:
    def __init__(self, size, kept):
        self.size, self.kept, self.indices = size, kept, {}

    def is_hook_of(self, layer):
        """Whether a layer calls this."""
        return any(hook is self for hook in self._hooks(layer).values())

    def leave(self, layer):
        """Be no hook of a layer any more, nor of what it wraps."""
        for module in layer.modules():
            hooks = self._hooks(module)
            for key in [key for key, hook in hooks.items() if hook is self]:
                del hooks[key]

    def index(self, device):
        # A buffer that isn't saved would be garbage after a load without memory. Once a device: sending it makes the host wait.
        if device not in self.indices:
            places = [place for start, stop in self.kept for place in range(start, stop)]
            with torch.inference_mode(False):  # training may read it later
                self.indices[device] = torch.tensor(places, dtype=torch.long, device=device)
        return self.indices[device]


class Spread(_Width):
    """A forward hook: zeros where the output's indices are gone."""

    side = "output"

    def _hooks(self, layer):
        return layer._forward_hooks

    def join(self, layer):
        """Become a hook of a layer."""
        layer.register_forward_hook(self)

    def __call__(self, _module, _args, output):
        """Return the output in its full width."""
        full = output.new_zeros(*output.shape[:-1], self.size)
        return full.index_copy(-1, self.index(output.device), output)


class Gather(_Width):
    """A forward pre-hook: only the kept indices of the input."""

    side = "input"

    def _hooks(self, layer):
        return layer._forward_pre_hooks

    def join(self, layer):
        """Become a hook of a layer, the first of all: what others see is as narrow as the weights."""
        layer.register_forward_pre_hook(self, prepend=True)

    def __call__(self, _module, args):
        """Return the arguments with the first narrowed."""
        return (args[0].index_select(-1, self.index(args[0].device)), *args[1:])


def unfold(module: nn.Module, parameters: dict) -> None:
    """Let a module find cut parameters in their full size while it runs, zeros where indices are gone.

    ``parameters`` maps names below the module to ``dim``, ``size`` and ``kept`` ([start, stop] in the dimension before the cut).
    What the optimizer, ``state_dict`` and the disk see are the cut parameters.
    """
    parameters = {**unfolded(module), **parameters}
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if hasattr(hook, "unfolded")]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)
    module.register_forward_pre_hook(Unfold(parameters), prepend=True)
    module.register_forward_hook(Fold(parameters), always_call=True)


def unfolded(module: nn.Module) -> dict:
    """Return the parameters that ``unfold`` was given for a module."""
    hooks = module._forward_pre_hooks.values()
    return next((hook.unfolded for hook in hooks if hasattr(hook, "unfolded")), {})


class Unfold:
    """A forward pre-hook: puts full-size tensors before the parameters, in the instances' own attributes, which win."""

    def __init__(self, parameters):
        self.unfolded = parameters
        self.widths = {n: _Width(spec["size"], spec["kept"]) for n, spec in parameters.items()}

    def __call__(self, module, _args):
        """Make the tensors anew: the parameters may have been trained or moved."""
        for name, spec in self.unfolded.items():
            owner, _, leaf = name.rpartition(".")
            owner = module.get_submodule(owner)
            part = owner.get_parameter(leaf)
            shape = [*part.shape[: spec["dim"]], spec["size"], *part.shape[spec["dim"] + 1 :]]
            places = self.widths[name].index(part.device)
            vars(owner)[leaf] = part.new_zeros(shape).index_copy(spec["dim"], places, part)


class Fold:
    """A forward hook that takes the full-size tensors away, also after an error."""

    def __init__(self, parameters):
        self.unfolded = parameters

    def __call__(self, module, _args, _output):
        """Let the parameters be seen again."""
        for name in self.unfolded:
            owner, _, leaf = name.rpartition(".")
            vars(module.get_submodule(owner)).pop(leaf, None)


class HeadPrunedMixin:
    """Cuts a freshly built stock model to its pruned sizes."""

    @classmethod
    def is_custom_code(cls):
        """Say no, as the stock class does: of custom classes transformers computes fewer of the buffers that aren't saved."""
        return False

    def __init__(self, config, *args, **kwargs):
        # Some models build the one inside by AutoModel, which goes by the config: to it this is the stock model's.
        own, auto_map = type(config), vars(config).pop("auto_map", None)
        config.__class__ = own.__base__ if own.__module__ == __name__ else own
        vars(self)["config_class"] = type(config)  # what composite models compare it with
        try:
            super().__init__(config, *args, **kwargs)
        finally:
            config.__class__ = own
            vars(self).pop("config_class", None)
            vars(config).update({} if auto_map is None else {"auto_map": auto_map})
        if "sites" in (getattr(config, "headprune", None) or {}):
            shrink(self, config.headprune)  # once, at the root: parts are built as stock classes

    def init_continuous_batching(self, *args, **kwargs):
        """Refuse where the cache of continuous batching, alike in all layers, can't hold what the layers keep."""
        if self.config.headprune.get("uneven_cache"):
            raise NotImplementedError(UNEVEN_CACHE)
        return super().init_continuous_batching(*args, **kwargs)


def __getattr__(name):
    """Make ``HeadPruned<Class>`` for any class of transformers, when it is first asked for."""
    base = getattr(transformers, name.removeprefix("HeadPruned"), None)
    if not name.startswith("HeadPruned") or base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if issubclass(base, PreTrainedConfig):
        made = type(name, (base,), {"__module__": __name__})
    else:
        config = "HeadPruned" + base.config_class.__name__
        own = {"__module__": __name__, "config_class": globals().get(config) or __getattr__(config)}
        made = type(name, (HeadPrunedMixin, base), own)
        _keep_weight_conversions(name, base)
    globals()[name] = made
    return made


def _keep_weight_conversions(name, base):
    """Rename and fuse weights at loading as the stock class does: transformers skips that for classes it doesn't know."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping as find
        from transformers.conversion_mapping import register_checkpoint_conversion_mapping as add
    except ImportError as error:
        if int(transformers.__version__.split(".")[0]) >= 5:  # older ones convert nothing
            log = transformers.utils.logging.get_logger(__name__)
            log.warning(f"{error}: weights load by their own names alone; newer than this file?")
        return
    mapping = find(base.__name__) or find(base.config_class.model_type)
    if mapping is not None:
        add(name, mapping, overwrite=True)
