"""One forward of a batch, recorded: what blocks, attentions and output projections put out, and in which order they ran."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.batch import Batch, Loss, forward
from headprune.heads import SiteId
from headprune.masking import gated
from headprune.replay.logits import example_losses
from headprune.replay.rows import repeat


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: what it read first, what it put out, and the ticks at which it began and ended."""

    module: nn.Module
    read: Any
    output: Any
    began: int
    ended: int


@dataclass(frozen=True, eq=False)
class SiteCall:
    """The calls of one attention and of its output projection, which is noted to have read ``z`` without gates."""

    attention: Call
    projection: Call


@dataclass(frozen=True, eq=False)
class Recording:
    """What there is to resume from.

    Args:
        calls: The calls of blocks, of attentions, and of what lies beside the blocks, in the order in which they ended.
        sites: The attentions that were called once, and their output projections too.
        losses: Every example's loss.
    """

    calls: tuple[Call, ...]
    sites: Mapping[SiteId, SiteCall]
    losses: Float[Tensor, " examples"]

    @property
    def order(self) -> tuple[int, ...]:
        """Which modules ran, in order: batches that differ in it aren't resumed alike."""
        return tuple(id(call.module) for call in self.calls)

    def done(self, *, before: int | None = None) -> tuple[Call, ...]:
        """Return the calls that had ended before a tick (None: all), the outermost ones, in the order in which they began."""
        return outermost(self.calls, before=before)


def outermost(calls: Sequence[Call], *, before: int | None = None) -> tuple[Call, ...]:
    """Return those of ``calls`` that had ended before a tick (None: all) and lie in no other such call."""
    found: list[Call] = []
    for call in sorted(calls, key=lambda call: call.began):
        ended = before is None or call.ended < before
        if ended and (not found or call.began > found[-1].ended):
            found.append(call)
    return tuple(found)


def record(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batch: Batch,
    loss: Loss,
    *,
    base: Float[Tensor, " heads"],
) -> Recording:
    """Run a batch once, its heads gated by ``base``, and keep what later forwards needn't compute again."""
    tape = Tape(model, anatomy)
    gates = nullcontext() if bool((base == 1).all()) else gated(model, anatomy, gates=base)
    # The tape listens first, so that it hears z as it is before the gates: heads that the base silences may come back.
    with tape.recording(), gates:
        losses = example_losses(
            model,
            batch,
            loss,
            run=lambda: forward(model, batch.inputs),
            rerun=lambda: tape.rerun(batch),
        )
    return Recording(tuple(tape.calls), tape.sites(), losses[0])


@dataclass(eq=False)
class Tape:
    """Collects the calls of a model's forward, while :meth:`recording`."""

    model: PreTrainedModel
    anatomy: Anatomy
    calls: list[Call] = field(default_factory=list)
    projections: dict[nn.Module, list[Call]] = field(default_factory=dict)
    tick: int = 0
    paused: bool = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Listen to the modules for the length of a block."""
        blocks = _stops(self.model, self.anatomy)
        projections = {
            self.model.get_submodule(site.output)
            for site in self.anatomy.sites
            if site.called == "module"
        }
        with ExitStack() as hooks:
            for module in {*blocks, *projections}:
                kept = (
                    self.projections.setdefault(module, []) if module in projections else self.calls
                )
                for handle in self._listen(module, kept):
                    hooks.callback(handle.remove)
            yield

    def _listen(self, module: nn.Module, kept: list[Call]) -> Iterator[Any]:
        began: list[tuple[int, Any]] = []

        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self.tick += 1
            began.append((self.tick, args[0] if args else None))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            self.tick += 1
            start, read = began.pop()
            if not self.paused:
                # What blocks read is what others put out: only a projection's input is nowhere else.
                kept.append(
                    Call(module, read if kept is not self.calls else None, output, start, self.tick)
                )

        yield module.register_forward_pre_hook(before)
        yield module.register_forward_hook(after)

    def rerun(self, batch: Batch) -> Any:
        """Run nothing but what comes after the recorded blocks."""
        self.paused = True
        try:
            with returning(outermost(self.calls)):
                return forward(self.model, batch.inputs)
        finally:
            self.paused = False

    def sites(self) -> dict[SiteId, SiteCall]:
        """Return the attentions that were called once, with output projections that were, too."""
        times = Counter(call.module for call in self.calls)
        by_module = {call.module: call for call in self.calls}
        found: dict[SiteId, SiteCall] = {}
        for site in self.anatomy.sites:
            attention = self.model.get_submodule(site.path)
            made = self.projections.get(self.model.get_submodule(site.output), [])
            if times[attention] == 1 and len(made) == 1:
                found[site.id] = SiteCall(by_module[attention], made[0])
        return found


def _stops(model: PreTrainedModel, anatomy: Anatomy) -> dict[nn.Module, None]:
    """Return the modules whose outputs are worth keeping: blocks, attentions, and what lies beside the blocks.

    On the way from the model to an attention: all elements of the lists it goes through, and everything beside the way until
    the first list. What makes logits is left out: nothing resumes after it.
    """
    found: dict[nn.Module, None] = {}
    for site in anatomy.sites:
        module: nn.Module = model
        inside = False
        for name in site.path.split("."):
            inside = inside or isinstance(module, nn.ModuleList)
            if isinstance(module, nn.ModuleList) or not inside:
                found |= dict.fromkeys(module.children())
            module = module.get_submodule(name)
        found[module] = None
    found.pop(model.get_output_embeddings(), None)
    return {module: None for module in found if not isinstance(module, nn.ModuleList)}


def compiled_blocks(
    model: PreTrainedModel, anatomy: Anatomy
) -> dict[nn.Module, Callable[..., Any]]:
    """Return compiled forwards of the blocks that attentions lie in; one graph serves batches of any size and length."""
    blocks = dict.fromkeys(block_of(model, site) for site in anatomy.sites)
    return {
        block: torch.compile(block.forward, dynamic=True) for block in blocks if block is not None
    }


def block_of(model: PreTrainedModel, site: Site) -> nn.Module | None:
    """Return the block that an attention lies in: the outermost element of a list on the way to it."""
    module: nn.Module = model
    for name in site.path.split("."):
        parent, module = module, module.get_submodule(name)
        if isinstance(parent, nn.ModuleList):
            return module
    return None


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forwards for the length of a block."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, function in forwards.items():
            vars(module)["forward"] = function
        yield
    finally:
        for module, own in before.items():
            del vars(module)["forward"]
            if own is not None:  # some libraries give a module a forward of its own
                vars(module)["forward"] = own


class _ReachedError(Exception):
    """A module was reached, and needn't run."""

    def __init__(self, read: Tensor) -> None:
        super().__init__("reached")
        self.read = read


def read_by(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """Return what a module reads, what hooks make of it included, when ``run`` runs; nothing after it does."""

    def stop(read: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        raise _ReachedError(read)

    try:
        with replaced({module: stop}):
            run()
    except _ReachedError as reached:
        return reached.read
    raise RuntimeError("the module did not run")


@contextmanager
def returning(calls: Sequence[Call], *, copies: int = 1, rows: int = 1) -> Iterator[None]:
    """Make modules return what they put out in ``calls``, repeated, call by call; further calls run as ever."""
    recorded: dict[nn.Module, list[Any]] = {}
    for call in calls:
        recorded.setdefault(call.module, []).append(call.output)
    with replaced(
        {
            module: _answers(module, outputs, copies=copies, rows=rows)
            for module, outputs in recorded.items()
        }
    ):
        yield


def _answers(
    module: nn.Module, outputs: list[Any], *, copies: int, rows: int
) -> Callable[..., Any]:
    waiting = iter(outputs)
    own = module.forward

    def answer(*args: Any, **kwargs: Any) -> Any:
        for output in waiting:
            return repeat(output, copies=copies, rows=rows)
        return own(*args, **kwargs)

    return answer
