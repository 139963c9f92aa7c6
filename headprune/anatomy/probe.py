"""Run a small copy of a model, tower by tower, and collect the attentions that it shows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel

from headprune.anatomy.clone import SIZES, refuse_quantised, refuse_uneven, tiny_clone
from headprune.anatomy.exceptions import REASONS
from headprune.anatomy.inputs import example_inputs
from headprune.anatomy.locate import UNSEEN, locate
from headprune.anatomy.ownership import Pattern, find_patterns, with_row_order
from headprune.anatomy.trace import CACHE_NAMES, AttentionCall, looks_like_attention, record
from headprune.errors import UnsupportedError


@dataclass(frozen=True, eq=False)
class Tower:
    """A part of the clone that runs by itself: the whole model, or one of the models it is made of.

    What is learnt from ``inputs`` has to hold for ``others``, which have another number of rows and another length.
    """

    path: str
    inputs: Mapping[str, Any]
    others: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Probe:
    """What the clone showed."""

    clone: PreTrainedModel
    towers: tuple[Tower, ...]
    patterns: tuple[Pattern, ...]
    refused: Mapping[str, str]


def probe(model: PreTrainedModel) -> Probe:
    """Build a small copy of ``model`` and ask it where its heads are.

    Raises:
        UnsupportedError: The model is quantised; its layers differ in their number of heads; no copy can be built or run; or it
            has no attention that was understood.
    """
    refuse_quantised(model)
    refuse_uneven(model)
    best: Probe | None = None
    fewest = 0
    headless: Probe | None = None
    problem: UnsupportedError | None = None
    for size in SIZES:
        try:
            probed = _probe(tiny_clone(model, size=size))
            anatomy = locate(model, probed.patterns, probed.refused)
        except UnsupportedError as error:
            problem = problem or error
            continue
        unseen = sum(reason == UNSEEN for reason in anatomy.refused.values())
        if not anatomy.sites:
            headless = headless or probed
        elif best is None or unseen < fewest:
            best, fewest = probed, unseen
        if not unseen:
            break
    if best is not None:
        return best
    if problem is not None and headless is None:
        raise problem
    raise unsupported(model, headless.refused if headless else {})


def unsupported(model: PreTrainedModel, refused: Mapping[str, str]) -> UnsupportedError:
    """Return what to raise where none of a model's attentions can be pruned, for the first of the reasons."""
    model_type = model.config.model_type
    reason = REASONS.get(model_type) or next(iter(refused.values()), "it has no attention heads")
    return UnsupportedError(
        f"model type {model_type!r} is not supported: {reason}",
        where=f"{type(model).__name__} (config.json: model_type)",
        hint="docs/support.md lists what is supported",
    )


def run_tower(clone: nn.Module, tower: Tower) -> list[Tensor]:
    """Return every tensor of floats that a tower puts out for its other inputs.

    Models that draw random numbers draw the same each time.
    """
    return _run(clone.get_submodule(tower.path), tower.others)


def attentions_with_cache(probed: Probe) -> set[str]:
    """Return the paths of the attentions that are handed a key/value cache."""
    caching: set[str] = set()

    def note(path: str) -> Any:
        def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
                caching.add(path)

        return look

    for tower in probed.towers:
        module = probed.clone.get_submodule(tower.path)
        with ExitStack() as hooks:
            # A cache of another kind, or none although the signature says so.
            hooks.enter_context(suppress(Exception))
            for pattern in probed.patterns:
                attention = probed.clone.get_submodule(pattern.path)
                handle = attention.register_forward_pre_hook(note(pattern.path), with_kwargs=True)
                hooks.callback(handle.remove)
            if asked := _asking_for_a_cache(module):
                _run(module, {**tower.others, **asked})
    return caching


def _asking_for_a_cache(module: nn.Module) -> dict[str, Any]:
    """Return the arguments with which a model fills a cache; a model that generates is handed one, as ``generate`` does."""
    parameters = signature(module.forward).parameters
    anything = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    asked: dict[str, Any] = {}
    if anything or "use_cache" in parameters:
        asked["use_cache"] = True
    if asked and isinstance(module, PreTrainedModel) and module.can_generate():
        cache = DynamicCache(config=module.config.get_text_config(decoder=True))
        both = module.config.is_encoder_decoder
        name = next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[-1])
        asked[name] = EncoderDecoderCache(cache, DynamicCache()) if both else cache
    return asked


def _run(module: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _forgetting(module):
        torch.manual_seed(0)
        return list(_tensors(module(**inputs)))


@contextmanager
def _forgetting(module: nn.Module) -> Iterator[None]:
    """Undo what a forward keeps on its modules for the next one (Qwen2-VL's ``rope_deltas``, one for each row it saw)."""
    before = [(part, dict(vars(part))) for part in module.modules()]
    try:
        yield
    finally:
        for part, values in before:
            vars(part).clear()
            vars(part).update(values)


def _tower(path: str, module: PreTrainedModel) -> Tower:
    inputs = example_inputs(module)
    others = example_inputs(module, rows=3, length=14, seed=1)
    parts = list(module.modules())
    try:
        _run(module, others)
    except Exception:  # noqa: BLE001 - some parts take one shape only
        others = inputs
    if list(module.modules()) != parts:
        # BigBird puts other attentions in the place of its own at the first short rows: let it, or it does so every time.
        with torch.no_grad():
            module(**inputs)
    return Tower(path, inputs, others)


def _probe(clone: PreTrainedModel) -> Probe:
    towers: list[Tower] = []
    patterns: dict[str, Pattern] = {}
    refused: dict[str, str] = {}
    reached: set[nn.Module] = set()
    problem: Exception | None = None
    before = {path: type(module) for path, module in clone.named_modules()}
    for path, module in _parts(clone):
        mine = {child for child in module.modules() if looks_like_attention(child)}
        if path and mine <= reached:
            continue
        try:
            tower = _tower(path, module)
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                with _forgetting(clone):
                    recording = record(module, tower.inputs)
                shown, no = find_patterns(clone, recording)
                shown, unclear = with_row_order(
                    clone, module, tower.inputs, recording=recording, patterns=shown
                )
        except Exception as error:  # noqa: BLE001 - a forward that dislikes its inputs raises what it likes
            problem = problem or error
            continue
        called = {span.module for span in recording.spans} | {
            call.module for call in recording.calls if isinstance(call, AttentionCall)
        }
        if called - reached:
            towers.append(tower)
            reached |= called
        patterns |= {pattern.path: pattern for pattern in shown if pattern.path not in patterns}
        refused |= no | unclear
    replaced = {
        path for path, module in clone.named_modules() if before.get(path) is not type(module)
    }
    patterns |= {
        path: replace(pattern, class_name="", may_run_natively=False)
        for path, pattern in patterns.items()
        if path in replaced
    }
    if problem is not None and not towers:
        raise UnsupportedError(
            f"model type {clone.config.model_type!r} is not supported: "
            f"a small copy of it doesn't run on made-up inputs ({problem})",
            where=f"{type(clone).__name__} (config.json: model_type)",
            hint="please report the model type",
        ) from problem
    return Probe(clone, tuple(towers), tuple(patterns.values()), refused)


def _parts(clone: PreTrainedModel) -> Iterator[tuple[str, PreTrainedModel]]:
    """Yield the model, then the models it is made of, the outer ones first."""
    for path, module in clone.named_modules():
        if isinstance(module, PreTrainedModel):
            yield path, module


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)
