"""The target of the refit: the residual stream of the whole model, wherever a family adds what an attention puts out."""

import pytest
import torch
import transformers
from families import build, inspected, t5, token_inputs

import headprune as hp
from headprune.batch import as_batches
from headprune.replay.record import block_of, tensors_in
from headprune.replay.resume import advance_through, in_order
from headprune.surgery.fit import fit
from headprune.surgery.projections import read, write_weights
from headprune.surgery.residual import residual_sums, scale_of, sum_after


def gpt_neox(**settings):
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3}
    more = {"intermediate_size": 40, "vocab_size": 96, "initializer_range": 0.4}
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**sizes, **more, **settings)
    return transformers.GPTNeoXForCausalLM(config).eval()


def of_images(kind, **settings):
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3}
    more = {"image_size": 12, "patch_size": 4, "initializer_range": 0.4}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, **settings)
    return getattr(transformers, f"{kind}ForImageClassification")(config).eval()


def dinov2():
    model = of_images("Dinov2")
    for name, parameter in model.named_parameters():
        if "lambda1" in name:
            torch.nn.init.uniform_(parameter, 0.3, 2.0)
    return model


def granite():
    settings = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    more = {"intermediate_size": 40, "vocab_size": 96, "initializer_range": 0.4}
    torch.manual_seed(0)
    config = transformers.GraniteConfig(**settings, **more, residual_multiplier=0.3)
    return transformers.GraniteForCausalLM(config).eval()


def olmo2():
    settings = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    more = {"intermediate_size": 40, "vocab_size": 96, "initializer_range": 0.4}
    torch.manual_seed(0)
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**settings, **more)).eval()


def bloom():
    """Its attention adds the stream itself, after its output projection."""
    settings = {"hidden_size": 32, "n_head": 4, "n_layer": 3, "vocab_size": 96}
    torch.manual_seed(0)
    config = transformers.BloomConfig(**settings, initializer_range=0.4)
    return transformers.BloomForCausalLM(config).eval()


def with_attention_weights():
    """Its attentions put out their weights, too."""
    model = build("llama")
    model.set_attn_implementation("eager")
    return model


def adding_in_place():
    """Its attentions add the stream to what their projections put out, in the same memory."""
    model = build("llama")
    for layer in model.model.layers:

        def forward(hidden_states, *args, own=layer.self_attn.forward, **kwargs):
            output, weights = own(hidden_states, *args, **kwargs)
            output += hidden_states
            return output, weights

        layer.self_attn.forward = forward
    return model


def with_a_skip(model, *, to=2):
    """Let a later block read what the first put out, beside what the one before it did, as U-shaped models do."""
    layers = model.bert.encoder.layer
    first = []
    layers[0].register_forward_hook(lambda _module, _args, output: first.append(output))

    def add(_module, args):
        output = first[-1]
        early = output[0] if isinstance(output, tuple) else output
        return (args[0] + early.flip(-1), *args[1:])

    layers[to].register_forward_pre_hook(add)
    return model


def of_text(rows):
    return token_inputs(rows=rows)


def of_two_texts(rows):
    ids = torch.randint(3, 90, (rows, 11), generator=torch.Generator().manual_seed(1))
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**texts, "decoder_input_ids": ids.flip(1)[:, :9]}


def of_pixels(rows):
    return {
        "pixel_values": torch.randn(rows, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    }


def parent(model, path, levels=1):
    return model.get_submodule(path.rsplit(".", levels)[0])


def block(model, site):
    return parent(model, site.path)


# Where a family adds: ``(model, site) -> (module, whether it reads the sum, the factors)``.
ADDS = {
    "bert": lambda m, s: (parent(m, s.output).LayerNorm, True, 1),
    "bert, skipping": lambda m, s: (parent(m, s.output).LayerNorm, True, 1),
    "bert, skipping far": lambda m, s: (parent(m, s.output).LayerNorm, True, 1),
    "gpt2": lambda m, s: (block(m, s).ln_2, True, 1),
    "llama": lambda m, s: (block(m, s).post_attention_layernorm, True, 1),
    "granite": lambda m, s: (block(m, s).post_attention_layernorm, True, 0.3),
    "gpt_neox": lambda m, s: (block(m, s), False, 1),
    "t5": lambda m, s: (block(m, s), False, 1),
    "vit": lambda m, s: (block_of(m, s).layernorm_after, True, 1),
    "dinov2": lambda m, s: (
        block_of(m, s).norm2,
        True,
        block_of(m, s).layer_scale1.lambda1.detach(),
    ),
    "olmo2": None,  # its output is normed before it is added
}
MODELS = {
    "bert": (lambda: build("bert"), of_text),
    "bert, skipping": (lambda: with_a_skip(build("bert")), of_text),
    "bert, skipping far": (lambda: with_a_skip(build("bert", num_hidden_layers=5), to=4), of_text),
    "gpt2": (lambda: build("gpt2"), of_text),
    "llama": (lambda: build("llama"), of_text),
    "granite": (granite, of_text),
    "gpt_neox": (gpt_neox, of_text),
    "t5": (t5, of_two_texts),
    "vit": (lambda: of_images("ViT"), of_pixels),
    "dinov2": (dinov2, of_pixels),
    "olmo2": (olmo2, of_text),
}


def removed(anatomy):
    """Return a group of the heads of every other attention, and not of the first."""
    sites = list(anatomy.sites)[1::2]
    groups = [next(iter(site.groups(site.heads).values())) for site in sites]
    return [f"{s.id}.H{head}" for s, heads in zip(sites, groups, strict=True) for head in heads]


def recorded(model, anatomy, inputs, adds, gone=()):
    """Return ``{site: (z, output, sum)}`` at all positions of all rows, each row run alone, without its padding."""
    found = {site.id: ([], [], []) for site in anatomy.sites}
    for row in range(len(next(iter(inputs.values())))):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        if "attention_mask" in one and "decoder_input_ids" not in one:
            real = one["attention_mask"][0].bool()
            one = {name: value[:, real] for name, value in one.items()}
        handles = []
        for site in anatomy.sites:
            z, output, total = found[site.id]
            projection = model.get_submodule(site.output)

            def keep(_module, args, out, z=z, output=output):
                z.append(args[0][0].double())
                output.append(out[0].double())

            handles.append((projection.register_forward_hook, keep))
            if adds is not None:
                module, is_read, _ = adds(model, site)
                if is_read:
                    hook = lambda _m, args, total=total: total.append(args[0][0].double())  # noqa: E731
                    handles.append((module.register_forward_pre_hook, hook))
                else:
                    hook = lambda _m, _a, out, total=total: total.append(  # noqa: E731
                        (out[0] if isinstance(out, tuple) else out)[0].double()
                    )
                    handles.append((module.register_forward_hook, hook))
        # The gates are hooks, too, and come first.
        with hp.masked(model, gone, anatomy=anatomy), torch.no_grad():
            placed = [register(hook) for register, hook in handles]
            model(**one)
        for handle in placed:
            handle.remove()
    return {
        site: tuple(torch.cat(part) if part else None for part in parts)
        for site, parts in found.items()
    }


def least_squares(inputs, targets, start, weights, *, bias, ridge):
    """Return weight and bias by another way: weights and ridge as rows of the data, and a solver by QR."""
    width = inputs.shape[1]
    scale = ridge * (weights[:, None] * inputs.square()).sum(0).mean()
    rows = torch.cat([inputs * weights.sqrt()[:, None], scale.sqrt() * torch.eye(width).double()])
    wanted = torch.cat([targets * weights.sqrt()[:, None], scale.sqrt() * start])
    if bias:
        rows = torch.cat(
            [rows, torch.cat([weights.sqrt(), torch.zeros(width).double()])[:, None]], dim=1
        )
    return torch.linalg.lstsq(rows, wanted).solution


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_attention_solves_its_least_squares(name):
    ridge = 1e-2
    make, data = MODELS[name]
    model, whole, inputs, adds = make(), make(), data(24), ADDS[name]
    anatomy = inspected(model)
    gone = removed(anatomy)
    mask = anatomy.mask([head for head in anatomy.heads if str(head) in gone])
    parts = as_batches([{k: v[i : i + 8] for k, v in inputs.items()} for i in (0, 8, 16)])
    (found,) = fit(model, anatomy, batches=parts, mask=mask, methods=["refit"], ridges=[ridge])
    write_weights(model, found.weights)
    full = recorded(whole, anatomy, inputs, adds)
    left = recorded(model, anatomy, inputs, adds, gone)
    begun = False
    for site in anatomy.sites:
        old, new = (one.get_submodule(site.output) for one in (whole, model))
        matrices = [one.weight.detach().double() for one in (old, new)]
        before, after = (one if name == "gpt2" else one.T for one in matrices)
        kept = torch.tensor([f"{site.id}.H{head}" not in gone for head in site.heads])
        begun = begun or not bool(kept.all())
        if not begun:  # nothing was removed up to here
            assert torch.equal(before, after)
            continue
        columns = kept.repeat_interleave(site.head_dim)
        (_z, y, total), (z, own, own_total) = full[site.id], left[site.id]
        scale, targets, weights = 1.0, y, torch.ones(len(y)).double()
        if adds is not None:
            scale = adds(model, site)[2]
            targets = total - (own_total - own * scale)
            weights = 1 / total.square().mean(-1)
        has_bias = old.bias is not None
        solved = (
            least_squares(
                z[:, columns], targets, before[columns] * scale, weights, bias=has_bias, ridge=ridge
            )
            / scale
        )
        size = solved.abs().max().item()
        assert torch.allclose(after[columns], solved[: columns.sum()], atol=2e-4 * size), site.id
        assert torch.equal(after[~columns], before[~columns])
        if has_bias:
            assert torch.allclose(new.bias.detach().double(), solved[-1], atol=2e-4 * size)


def test_a_layer_without_heads_puts_what_is_missing_in_its_bias():
    model, inputs, adds = build("bert"), of_text(12), ADDS["bert"]
    anatomy = inspected(model)
    gone = [f"L1.H{head}" for head in range(6)]
    mask = anatomy.mask([head for head in anatomy.heads if str(head) in gone])
    batches = as_batches([inputs])
    (found,) = fit(model, anatomy, batches=batches, mask=mask, methods=["refit"], ridges=[1e-2])
    site = anatomy.sites[1]
    _z, _y, total = recorded(model, anatomy, inputs, adds)[site.id]
    write_weights(model, found.weights)
    _z, own, own_total = recorded(model, anatomy, inputs, adds, gone)[site.id]
    weights = 1 / total.square().mean(-1, keepdim=True)
    expected = ((total - (own_total - own)) * weights).sum(0) / weights.sum()
    bias = model.get_submodule(site.output).bias.detach().double()
    assert torch.allclose(bias, expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_sum_is_where_the_family_adds(name):
    make, data = MODELS[name]
    model, adds = make(), ADDS[name]
    anatomy = inspected(model)
    (batch,) = as_batches([data(2)])
    found = residual_sums(model, anatomy, batch)
    if adds is None:
        assert found == {}
        return
    for site in anatomy.sites:
        module, is_read, scale = adds(model, site)
        one = found[site.id]
        assert (one.module, one.is_read) == (module, is_read)
        assert torch.allclose(
            one.scale, torch.as_tensor(scale).float().expand_as(one.scale), rtol=1e-2
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt_neox"])
def test_half_precision_finds_the_same_sums(name, dtype):
    make, data = MODELS[name]
    anatomy = inspected(make())
    (batch,) = as_batches([data(2)])
    one, other = (
        {
            site: (type(one.module), one.is_read, round(float(one.scale.mean()), 2))
            for site, one in residual_sums(model, anatomy, batch).items()
        }
        for model in (make(), make().to(dtype))
    )
    assert one == other


@pytest.mark.parametrize("width", [32, 4096])
@pytest.mark.parametrize("norm", [torch.nn.LayerNorm, torch.nn.RMSNorm])
def test_what_is_normed_before_it_is_added_is_no_sum(norm, width):
    """However wide: random vectors of one size would all be divided by the same number."""
    probe = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    probe *= 1 + torch.arange(6)[:, None] % 3
    stream = torch.randn(6, width, generator=torch.Generator().manual_seed(1))
    assert scale_of(stream, stream + norm(width)(probe).detach(), probe) is None
    assert torch.allclose(scale_of(stream, stream + 0.3 * probe, probe), torch.tensor(0.3))


class _Block(torch.nn.Module):
    """Adds a projection of half its input to all of it, normed before or not."""

    def __init__(self, width, norm):
        super().__init__()
        self.projection = torch.nn.Linear(width // 2, width, bias=False)
        self.norm, self.after = norm, torch.nn.Identity()

    def forward(self, x):
        return self.after(x + self.norm(self.projection(x[..., : x.shape[-1] // 2])))


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm, torch.nn.RMSNorm])
def test_a_wide_block_that_norms_first_has_no_sum(norm):
    x = torch.randn(1, 9, 2048, generator=torch.Generator().manual_seed(0))
    plain, normed = _Block(2048, torch.nn.Identity()), _Block(2048, norm(2048))
    with torch.no_grad():
        assert sum_after(plain.projection, plain, (x,), {}).module is plain.after
        assert sum_after(normed.projection, normed, (x,), {}) is None


def test_few_short_rows_are_enough_to_ask():
    model = build("llama")
    anatomy = inspected(model)
    (batch,) = as_batches(
        [{"input_ids": torch.tensor([[5, 9, 7]]), "attention_mask": torch.ones(1, 3).long()}]
    )
    assert set(residual_sums(model, anatomy, batch)) == {site.id for site in anatomy.sites}


AGAIN = {"bloom": bloom, "in place": adding_in_place, "weights": with_attention_weights}


@pytest.mark.parametrize("asks_for_the_stream", [True, False])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "neox", "t5", *AGAIN])
@torch.no_grad()
def test_an_attention_needn_t_run_again_for_other_output_weights(name, asks_for_the_stream):
    """Where it does more with what its projection puts out, or puts out its weights, it runs again."""
    kinds = {"neox": gpt_neox, "t5": t5, **AGAIN}
    model = kinds[name]() if name in kinds else build(name)
    (batch,) = as_batches([(of_two_texts if name == "t5" else of_text)(8)])
    anatomy = inspected(model)
    sums = residual_sums(model, anatomy, batch) if asks_for_the_stream else {}
    first, *others = in_order(model, anatomy, batch)
    block = block_of(model, first)
    completed = advance_through(model, anatomy, batch, completed=(), through=block)
    site = next(one for one in others if block_of(model, one) is not block)
    block = block_of(model, site)
    total = sums.get(site.id)
    found = read(model, batch, site, total=total, completed=completed)
    assert (found.again is None) == (name in AGAIN)
    assert (found.stream is None) == (total is None)
    if found.again is not None:
        model.get_submodule(site.output).weight.add_(0.3)
        done = (*completed, found.again())
        ran = (
            advance_through(model, anatomy, batch, completed=calls, through=block)[-1].output
            for calls in (completed, done)
        )
        some, others = (list(tensors_in(output)) for output in ran)
        assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))
