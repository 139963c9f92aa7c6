"""Silence heads by one multiplication: the output projection's input is the concatenation of the heads' outputs ``z``.

Any attention kernel, no ``output_attentions``, no change of the model's forward; and since every row of a batch may carry
its own mask, one forward evaluates as many masks as it has rows.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Site
from headprune.errors import ModelError


@contextmanager
def gated(
    model: PreTrainedModel,
    anatomy: Anatomy,
    *,
    gates: Float[Tensor, "rows heads"] | Float[Tensor, " heads"],
) -> Iterator[None]:
    """Multiply every head's ``z`` by its gate while the block lasts.

    Exact: a gate of 0 removes the head's term from the sum that the output projection computes (its bias stays), and a gate
    of 1 changes no bit. Gates may require grad: the gradient of a loss with respect to them is Michel's.

    Args:
        model: The model whose forwards are gated.
        anatomy: Its anatomy; columns of ``gates`` are ``anatomy.heads``.
        gates: One row for every row of the batch, or a single row for all.

    Raises:
        ModelError: A forward ran and a site's output projection was not called in it, so that nothing was masked there;
            or the batch has a number of rows that the gates don't fit.
    """
    fired: Counter[str] = Counter()
    forwards: Counter[str] = Counter()
    with ExitStack() as hooks:

        def add(handle: Any) -> None:
            hooks.callback(handle.remove)

        add(model.register_forward_pre_hook(lambda _module, _args: forwards.update(["all"])))
        for site in anatomy.sites:
            columns = gates[..., anatomy.columns[site.id]]
            module = model.get_submodule(site.output)
            add(module.register_forward_pre_hook(_gate_hook(site, columns, fired)))
        yield
    silent = [site.output for site in anatomy.sites if site.heads and not fired[site.output]]
    if forwards["all"] and silent:
        raise ModelError(
            f"the heads of {silent[0]} were not masked: its forward was never called as a module",
            where=f"{type(model).__name__} ({anatomy.model_type})",
            hint="a fused kernel may have replaced the attention; load the model with attn_implementation='sdpa'",
        )


def _gate_hook(site: Site, gates: Tensor, fired: Counter[str]) -> Any:
    def multiply(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        fired[site.output] += 1
        z = args[0]
        by_row = gates
        if gates.dim() == 2:
            if gates.shape[0] != z.shape[0]:
                raise ModelError(
                    f"{site.output} got {z.shape[0]} rows, and there are gates for {gates.shape[0]}",
                    where="masking",
                    hint="give one row of gates for every row of the batch",
                )
            by_row = gates.reshape(z.shape[0], *[1] * (z.dim() - 2), len(site.heads))
        heads = z.unflatten(-1, (len(site.heads), site.head_dim)) if site.heads else z
        return (
            ((heads * by_row.to(z.dtype).unsqueeze(-1)).flatten(-2), *args[1:])
            if site.heads
            else args
        )

    return multiply
