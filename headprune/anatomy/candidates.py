"""Where the heads of an attention might be: candidates for its output projection, best guess first.

Whether a guess is right is not decided here: autograd tells whose rows are whose, and the clone is masked and cut.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from headprune.anatomy.clone import config_value
from headprune.anatomy.exceptions import HEAD_COUNTS
from headprune.anatomy.sites import Call
from headprune.anatomy.trace import (
    AttentionCall,
    LayerCall,
    Recording,
    Span,
    in_features,
    is_linear,
)

# How many layer calls after an attention are looked at.
_NEAR = 40


@dataclass(frozen=True, eq=False)
class Candidate:
    """An attention module, the layer ``gate`` whose input ``z`` may be the heads' outputs, and the output projection."""

    module: nn.Module
    gate: nn.Module
    output: nn.Module
    z: Tensor
    num_heads: int
    num_key_value_heads: int | None
    called: Call = "module"

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.z.shape[-1] // self.num_heads


def candidates(
    recording: Recording, names: Mapping[nn.Module, str]
) -> Iterator[tuple[nn.Module, list[Candidate]]]:
    """Yield every attention of a recorded forward with its candidates (possibly none), in the order of the forward."""
    through_interface: set[str] = set()
    for index, call in enumerate(recording.calls):
        if isinstance(call, AttentionCall):
            through_interface.add(names[call.module])
            yield call.module, list(_after_call(call, recording.calls[index + 1 :]))
    for span in recording.spans:
        path = names[span.module]
        if not is_near(path, through_interface) and _is_innermost(span, recording.spans):
            yield span.module, list(_around_span(span, recording.calls))


def _after_call(
    attention: AttentionCall, following: Sequence[AttentionCall | LayerCall]
) -> Iterator[Candidate]:
    """Yield the first linear layer that reads an attention's output; then the norms that stand between the two."""
    width = attention.num_heads * attention.head_dim
    between: list[LayerCall] = []
    for call in following[:_NEAR]:
        if not isinstance(call, LayerCall) or not _depends(call.input, attention.output):
            continue
        if call.input.shape[-1] != width:
            return
        if is_linear(call.module):
            for gate in (call, *between):
                yield Candidate(
                    attention.module,
                    gate.module,
                    call.module,
                    gate.input,
                    attention.num_heads,
                    attention.num_key_value_heads,
                    gate.called,
                )
            return
        between.append(call)


def _around_span(span: Span, calls: Sequence[AttentionCall | LayerCall]) -> Iterator[Candidate]:
    """Yield the linear layers inside an attention, the last first, then the next ones that read its output."""
    inside = [call for call in calls[span.start : span.stop] if isinstance(call, LayerCall)]
    after = [
        call
        for call in calls[span.stop : span.stop + 6]
        if isinstance(call, LayerCall)
        and span.output is not None
        and _depends(call.input, span.output)
    ][:1]
    linears = [call for call in [*after, *reversed(inside)] if is_linear(call.module)]
    for num_heads in _head_counts(span.module):
        for call in linears:
            if call.input.requires_grad and in_features(call.module) % num_heads == 0:
                yield Candidate(
                    span.module, call.module, call.module, call.input, num_heads, None, call.called
                )


def _head_counts(module: nn.Module) -> Iterable[int]:
    """Return what may be the number of heads: integers that are named like it, the module's own first."""
    found: dict[int, None] = {}
    config: PreTrainedConfig | None = None
    for child in module.modules():
        config = config or getattr(child, "config", None)
        for name in HEAD_COUNTS:
            value = vars(child).get(name)
            if type(value) is int and value > 1:
                found[value] = None
    for name in HEAD_COUNTS:
        value = config_value(config, name)
        if type(value) is int and value > 1:
            found[value] = None
    return found


def _is_innermost(span: Span, spans: Iterable[Span]) -> bool:
    """Whether no other attention of some size ran inside this one (BertAttention holds BertSelfAttention)."""
    return not any(
        other.module is not span.module
        and any(other.module is child for child in span.module.modules())
        and (
            isinstance(other.module, nn.MultiheadAttention)
            or sum(is_linear(child) for child in other.module.modules()) >= 3
        )
        for other in spans
    )


def is_near(path: str, known: Iterable[str]) -> bool:
    """Whether a module is a known attention, holds one, or lies in one (BertAttention holds BertSelfAttention)."""
    return any(
        f"{other}.".startswith(f"{path}.") or f"{path}.".startswith(f"{other}.") for other in known
    )


def _depends(tensor: Tensor, source: Tensor) -> bool:
    if not tensor.requires_grad or not source.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(tensor.sum(), source, retain_graph=True, allow_unused=True)
    return gradient is not None
