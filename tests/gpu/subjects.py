"""Models and data for a device: random, and one whose heads matter as unequally as those of a trained model."""

from inspect import signature

import accelerate
import torch
from families import build, inspected, token_inputs

from headprune.batch import as_batches, per_example


def loss(outputs, _batch):
    return outputs.logits.float().square().flatten(1).mean(1)


def batches(*, count=2, rows=4, length=12):
    return as_batches([token_inputs(rows=rows, length=length, seed=seed) for seed in range(count)])


def with_unequal_heads():
    """Return a model in which what a head adds spans two powers of ten, as in trained ones."""
    model = build(
        "bert",
        num_hidden_layers=4,
        num_attention_heads=12,
        hidden_size=96,
        initializer_range=0.2,
    )
    anatomy = inspected(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for site in anatomy.sites:
            weight = model.get_submodule(site.output).weight
            sizes = 10 ** (2 * torch.rand(len(site.heads), generator=generator) - 1.5)
            weight *= sizes.repeat_interleave(site.head_dim)
    return model


def partly_waiting(model, device):
    """Let a model's blocks wait in CPU memory, and run on the device; the rest lies there."""
    inner = getattr(model, model.base_model_prefix)
    blocks = inner.encoder if hasattr(inner, "encoder") else inner.layers
    model.to(device)
    accelerate.cpu_offload(blocks.cpu(), execution_device=device)
    if device.type != "cpu":
        # What a spread model does at its boundaries.
        accelerate.hooks.add_hook_to_module(
            model, accelerate.hooks.AlignDevicesHook(execution_device=device, io_same_device=True)
        )
    return model


def plain(model, inputs):
    """Return a model's outputs; no cache is filled."""
    caches = "use_cache" in signature(model.forward).parameters or model.can_generate()
    return model(**inputs, use_cache=False) if caches else model(**inputs)


def naive_losses(model, anatomy, data, masks):
    """Return losses [masks, examples] by a forward of the whole model for every mask, heads silenced by plain hooks."""
    found = torch.empty(len(masks), sum(batch.num_examples for batch in data))
    for row, mask in enumerate(masks):
        hooks = []
        for site in anatomy.sites:
            gates = mask[anatomy.columns[site.id]].repeat_interleave(site.head_dim)

            def silence(_module, args, gates=gates):
                return (args[0] * gates.to(args[0]), *args[1:])

            projection = model.get_submodule(site.output)
            hooks.append(projection.register_forward_pre_hook(silence))
        with torch.no_grad():
            for batch in data:
                moved = batch.to(next(model.parameters()).device)
                values = per_example(loss, plain(model, moved.inputs), moved)
                found[row, batch.indices] = values.float().cpu()
        for hook in hooks:
            hook.remove()
    return found
