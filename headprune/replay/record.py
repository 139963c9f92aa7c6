"""What a forward of a batch put out, module by module: recorded, returned again, repeated for several masks."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy, Site
from headprune.batch import Batch, forward
from headprune.heads import SiteId


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

    @property
    def num_tokens(self) -> int:
        """How many tokens attentions saw: patches, frames and targets are no less than words. 0 where none was recorded."""
        read = [call.projection.read for call in self.sites.values()]
        return max((z.shape[:-1].numel() for z in read if isinstance(z, Tensor)), default=0)

    def done(self, *, before: int | None = None) -> tuple[Call, ...]:
        """Return the calls that had ended before a tick (None: all), the outermost ones, in the order in which they began."""
        return outermost(self.calls, before=before)


def outermost(calls: Sequence[Call], *, before: int | None = None) -> tuple[Call, ...]:
    """Return those of ``calls`` that had ended before a tick (None: all) and lie in no other such call."""
    outer: list[Call] = []
    for call in sorted(calls, key=lambda call: call.began):
        ended = before is None or call.ended < before
        if ended and (not outer or call.began > outer[-1].ended):
            outer.append(call)
    return tuple(outer)


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
        modules = _worth_recording(self.model, self.anatomy)
        projections = {
            self.model.get_submodule(site.output)
            for site in self.anatomy.sites
            if site.called == "module"
        }
        with ExitStack() as hooks:
            for module in {*modules, *projections}:
                is_projection = module in projections
                calls = self.projections.setdefault(module, []) if is_projection else self.calls
                for handle in self._listen(module, calls, keep_read=is_projection):
                    hooks.callback(handle.remove)
            yield

    def _listen(self, module: nn.Module, calls: list[Call], *, keep_read: bool) -> Iterator[Any]:
        running: list[tuple[int, Any]] = []

        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self.tick += 1
            # What blocks read is what others put out: only a projection's input is nowhere else.
            running.append((self.tick, args[0] if args and keep_read else None))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            self.tick += 1
            began, read = running.pop()
            if not self.paused:
                calls.append(Call(module, read, output, began, self.tick))

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
        sites: dict[SiteId, SiteCall] = {}
        for site in self.anatomy.sites:
            attention = self.model.get_submodule(site.path)
            projected = self.projections.get(self.model.get_submodule(site.output), [])
            if times[attention] == 1 and len(projected) == 1:
                sites[site.id] = SiteCall(by_module[attention], projected[0])
        return sites


def _worth_recording(model: PreTrainedModel, anatomy: Anatomy) -> list[nn.Module]:
    """Return the modules whose outputs are worth keeping: blocks, attentions, and what lies beside the blocks.

    On the way from the model to an attention: all elements of the lists it goes through, and everything beside the way until
    the first list. What makes logits is left out: nothing resumes after it.
    """
    modules: dict[nn.Module, None] = {}  # in order, each once
    for site in anatomy.sites:
        module: nn.Module = model
        inside = False
        for name in site.path.split("."):
            inside = inside or isinstance(module, nn.ModuleList)
            if isinstance(module, nn.ModuleList) or not inside:
                modules |= dict.fromkeys(module.children())
            module = module.get_submodule(name)
        modules[module] = None
    modules.pop(model.get_output_embeddings(), None)
    return [module for module in modules if not isinstance(module, nn.ModuleList)]


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


@contextmanager
def returning(calls: Sequence[Call], *, copies: int = 1, rows: int = 1) -> Iterator[None]:
    """Make modules return what they put out in ``calls``, call by call; further calls run as ever.

    Args:
        calls: What was recorded.
        copies: How many times the rows of the batch are there now: outputs are repeated as often.
        rows: Rows of the batch that was recorded.
    """
    outputs: dict[nn.Module, list[Any]] = {}
    for call in calls:
        outputs.setdefault(call.module, []).append(call.output)

    def recorded(module: nn.Module) -> Callable[..., Any]:
        waiting, own = iter(outputs[module]), module.forward

        def answer(*args: Any, **kwargs: Any) -> Any:
            for output in waiting:
                return repeat(output, copies=copies, rows=rows)
            return own(*args, **kwargs)

        return answer

    with replaced({module: recorded(module) for module in outputs}):
        yield


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of tuples, lists and mappings with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map_tensors(item, change) for item in value)
    if isinstance(value, list):
        return [map_tensors(item, change) for item in value]
    if isinstance(value, dict):  # a ModelOutput is one, and is rebuilt as its own class
        return type(value)(**{key: map_tensors(item, change) for key, item in value.items()})
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor of a nest of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def repeat(value: Any, *, copies: int, rows: int) -> Any:
    """Repeat whatever has the rows in dimension 0."""

    def repeated(tensor: Tensor) -> Tensor:
        if copies == 1 or tensor.dim() == 0 or tensor.shape[0] != rows:
            return tensor
        return tensor.repeat(copies, *[1] * (tensor.dim() - 1))

    return map_tensors(value, repeated)


def part(value: Any, index: int, *, copies: int, rows: int) -> Any:
    """Return the rows of one of the copies, the ``index``-th."""

    def cut(tensor: Tensor) -> Tensor:
        if copies == 1 or tensor.dim() == 0 or tensor.shape[0] != copies * rows:
            return tensor
        return tensor[index * rows : (index + 1) * rows]

    return map_tensors(value, cut)
