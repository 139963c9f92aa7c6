"""Attentions that pass their weights to a function: WavLM's, and torch.nn.MultiheadAttention in SigLIP's pooling head."""

import copy
import random

import pytest
import torch
import transformers
from families import inspected, written
from torch import nn

import headprune as hp
from headprune.anatomy.ownership import row_order
from headprune.anatomy.trace import LinearInputs
from headprune.batch import Batch
from headprune.models.load import load
from headprune.replay.losses import losses

# WavLM's own: a mask of booleans beside a bias of floats.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")

_SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 40,
}
_CONFIGS = {
    "wavlm": transformers.WavLMConfig(
        **_SIZES,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
    "siglip": transformers.SiglipVisionConfig(**_SIZES, image_size=32, patch_size=8),
}
_CLASSES = {"wavlm": transformers.WavLMModel, "siglip": transformers.SiglipVisionModel}


@pytest.fixture(params=sorted(_CONFIGS))
def kind(request):
    return request.param


def build(kind, *, seed=0):
    """Return a tiny model whose every weight is drawn: so heads matter, and so does the gated position bias."""
    torch.manual_seed(seed)
    model = _CLASSES[kind](copy.deepcopy(_CONFIGS[kind]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * 0.4)
            else:
                parameter.add_(noise * 0.2)
    return model.eval()


def inputs_of(kind, *, rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "siglip":
        return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=generator)}
    mask = torch.ones(rows, 400, dtype=torch.long)
    mask[1:, 300:] = 0
    return {
        "input_values": torch.randn(rows, 400, generator=generator),
        "attention_mask": mask,
    }


def outputs_of(model, inputs):
    found = model(**inputs)
    return torch.cat([found[0].flatten(1), found[1].flatten(1)], dim=1)


def random_plan(anatomy, seed):
    """Return heads to remove, different in every layer; with each seed another attention loses all."""
    rng = random.Random(seed)
    removed = []
    for index, site in enumerate(anatomy.sites):
        count = rng.randrange(len(site.heads))
        if index == seed % (len(anatomy.sites) + 1):
            count = len(site.heads)
        removed += [f"{site.id}.H{head}" for head in rng.sample(site.heads, count)]
    return removed


def functional_sites(anatomy):
    return [site for site in anatomy.sites if site.called == "function"]


def test_the_sites_are_found_and_nothing_is_refused(kind):
    anatomy = hp.inspect(build(kind))
    assert not anatomy.refused
    assert len(anatomy.heads) == {"wavlm": 18, "siglip": 24}[kind]
    found = functional_sites(anatomy)
    assert [site.path for site in found] == {
        "wavlm": [f"encoder.layers.{layer}.attention" for layer in range(3)],
        "siglip": ["head.attention"],
    }[kind]
    assert {site.execution for site in found} == {"full_size_weights"}
    assert {site.min_heads for site in found} == {0}
    # What isn't passed to a function is cut natively all the same.
    others = [site for site in anatomy.sites if site not in found]
    assert {site.execution for site in others} == ({"native"} if others else set())


def test_masked_equals_pruned_for_random_uneven_plans(kind):
    inputs = inputs_of(kind)
    anatomy = inspected(build(kind))
    for seed in range(12):
        removed = random_plan(anatomy, seed)
        model = build(kind)
        with torch.no_grad():
            plain = outputs_of(model, inputs)
            with hp.masked(model, removed, anatomy=anatomy):
                masked = outputs_of(model, inputs)
            hp.prune(model, removed, anatomy=anatomy)
            pruned = outputs_of(model, inputs)
        assert (masked - pruned).abs().max() <= 1e-5 * max(1.0, masked.abs().max())
        assert (masked - plain).abs().max() > 0.1


def test_every_site_moves_the_output_and_ones_move_nothing(kind):
    model, inputs = build(kind), inputs_of(kind)
    anatomy = inspected(model)
    with torch.no_grad():
        plain = outputs_of(model, inputs)
        with hp.masked(model, [], anatomy=anatomy):
            assert torch.equal(outputs_of(model, inputs), plain)
        for site in anatomy.sites:
            with hp.masked(model, [f"{site.id}.H0"], anatomy=anatomy):
                assert (outputs_of(model, inputs) - plain).abs().max() > 1e-2, site.id
        assert torch.equal(outputs_of(model, inputs), plain)


def test_every_row_gets_its_own_mask(kind):
    model, inputs = build(kind), inputs_of(kind, rows=4)
    anatomy = inspected(model)
    generator = torch.Generator().manual_seed(5)
    gates = {
        str(site.id): torch.rand(4, len(site.heads), generator=generator) for site in anatomy.sites
    }
    with torch.no_grad():
        with hp.masked(model, gates, anatomy=anatomy):
            together = outputs_of(model, inputs)
        for row in range(4):
            own = {name: value[row : row + 1] for name, value in gates.items()}
            with hp.masked(model, own, anatomy=anatomy):
                alone = outputs_of(model, {n: v[row : row + 1] for n, v in inputs.items()})
            assert (together[row] - alone[0]).abs().max() <= 1e-4


def test_a_pruned_model_is_masked_like_any(kind):
    inputs, model = inputs_of(kind), build(kind)
    anatomy = inspected(model)
    first = [f"{site.id}.H{head}" for site in anatomy.sites for head in (0, 3)]
    second = [f"{site.id}.H4" for site in anatomy.sites]
    with torch.no_grad():
        with hp.masked(model, first + second, anatomy=anatomy):
            expected = outputs_of(model, inputs)
        hp.prune(model, first, anatomy=anatomy)
        with hp.masked(model, second):
            found = outputs_of(model, inputs)
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max())


def test_a_reload_is_bit_identical(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, inputs = build(kind), inputs_of(kind)
    anatomy = inspected(model)
    removed = random_plan(anatomy, len(anatomy.sites) - 1)
    hp.prune(model, removed, anatomy=anatomy)
    with torch.no_grad():
        expected = outputs_of(model, inputs)
    assert written(model, tmp_path / "saved") == "remote-code"
    ours = load(tmp_path / "saved", device="cpu")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    written(ours, tmp_path / "again")
    again = load(tmp_path / "again", device="cpu")
    for reloaded in (ours, theirs.eval(), again):
        assert {n: p.shape for n, p in reloaded.named_parameters()} == {
            n: p.shape for n, p in model.named_parameters()
        }
        with torch.no_grad():
            assert torch.equal(outputs_of(reloaded, inputs), expected)
    left = {str(head) for head in inspected(ours).heads}
    assert left == {str(head) for head in anatomy.heads} - set(removed)


def test_pruning_twice_equals_pruning_once(kind, tmp_path):
    inputs = inputs_of(kind)
    sites = inspected(build(kind)).sites
    first = [f"{site.id}.H{head}" for site in sites for head in (1, 2)]
    second = [f"{site.id}.H5" for site in sites] + [f"{sites[-1].id}.H{h}" for h in (0, 3, 4)]
    twice, once = build(kind), build(kind)
    hp.prune(twice, first)
    written(twice, tmp_path / "first")
    reloaded = load(tmp_path / "first", device="cpu")
    hp.prune(twice, second)
    hp.prune(reloaded, second)
    hp.prune(once, first + second)
    for other in (twice, reloaded):
        for (name, one), (other_name, two) in zip(
            once.named_parameters(), other.named_parameters(), strict=True
        ):
            assert name == other_name
            assert torch.equal(one, two), name
        with torch.no_grad():
            assert torch.equal(outputs_of(once, inputs), outputs_of(other, inputs))


def test_what_is_stored_is_small_and_keeps_its_names(kind):
    model = build(kind)
    before = {name: value.shape for name, value in model.state_dict().items()}
    anatomy = inspected(model)
    hp.prune(model, [f"{site.id}.H0" for site in anatomy.sites], anatomy=anatomy)
    after = {name: value.shape for name, value in model.state_dict().items()}
    assert after.keys() == before.keys()
    for site in functional_sites(anatomy):
        for item in site.slices:
            assert after[item.parameter][item.dim] * 6 == before[item.parameter][item.dim] * 5
    with torch.no_grad():
        outputs_of(model, inputs_of(kind))
    assert {name: value.shape for name, value in model.state_dict().items()} == after
    assert not any(isinstance(v, torch.Tensor) for m in model.modules() for v in vars(m).values())


def test_a_training_step_changes_the_cut_parameters(kind):
    model, inputs = build(kind), inputs_of(kind)
    anatomy = inspected(model)
    removed = [f"{site.id}.H{head}" for site in anatomy.sites for head in (0, 4)]
    hp.prune(model, removed, anatomy=anatomy)
    names = {item.parameter for site in functional_sites(anatomy) for item in site.slices}
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = outputs_of(model, inputs)
    plain.square().mean().backward()
    optimizer.step()
    for name in names:
        parameter = model.get_parameter(name)
        assert parameter.grad.shape == before[name].shape, name
        # A softmax doesn't see the bias of keys.
        assert name.endswith("k_proj.bias") or not torch.equal(parameter, before[name]), name
    assert (outputs_of(model, inputs) - plain).abs().max() > 1e-3


def test_gradients_are_those_of_the_masked_model(kind):
    full, pruned = build(kind).double(), build(kind).double()
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs_of(kind).items()}
    anatomy = inspected(full)
    removed = [f"{site.id}.H{head}" for site in anatomy.sites for head in (2, 5)]
    with hp.masked(full, removed, anatomy=anatomy):
        outputs_of(full, inputs).square().mean().backward()
    hp.prune(pruned, removed, anatomy=anatomy)
    outputs_of(pruned, inputs).square().mean().backward()
    for site in functional_sites(anatomy):
        for item in site.slices:
            kept = item.kept_indices(present=range(6), kept=[0, 1, 3, 4])
            expected = full.get_parameter(item.parameter).grad
            expected = expected.index_select(item.dim, torch.tensor(kept))
            found = pruned.get_parameter(item.parameter).grad
            scale = max(1.0, expected.abs().max())
            assert (found - expected).abs().max() <= 1e-9 * scale, item.parameter


def test_a_copy_stands_on_its_own(kind):
    model, inputs = build(kind), inputs_of(kind)
    hp.prune(model, [f"{site.id}.H1" for site in inspected(model).sites])
    with torch.no_grad():
        expected = outputs_of(model, inputs)
        other = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(outputs_of(other, inputs), expected)


def test_a_forward_that_fails_leaves_nothing_behind(kind):
    model, inputs = build(kind), inputs_of(kind)
    anatomy = inspected(model)
    hp.prune(model, [f"{site.id}.H1" for site in anatomy.sites], anatomy=anatomy)
    with torch.no_grad():
        expected = outputs_of(model, inputs)
    path = functional_sites(anatomy)[0].path
    handle = model.get_submodule(path).register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**inputs)
    handle.remove()
    assert not any(isinstance(v, torch.Tensor) for m in model.modules() for v in vars(m).values())
    with torch.no_grad():
        assert torch.equal(outputs_of(model, inputs), expected)


def test_replayed_losses_are_those_of_whole_forwards(kind):
    """A pooling head lies in no block: its heads are masked whichever block the replay starts at."""
    model, inputs = build(kind), inputs_of(kind, rows=2)
    anatomy = inspected(model)
    masks = torch.ones(len(anatomy.heads), len(anatomy.heads)).fill_diagonal_(0)

    def loss(outputs, _batch):
        return torch.cat([outputs[0].flatten(1), outputs[1].flatten(1)], dim=1).square().mean(1)

    batch = Batch(inputs, torch.zeros(2), torch.arange(2), torch.arange(2))
    found = losses(model, anatomy, batches=[batch], loss=loss, masks=masks)
    for index, head in enumerate(anatomy.heads):
        with torch.no_grad(), hp.masked(model, [str(head)], anatomy=anatomy):
            expected = loss(model(**inputs), batch)
        assert torch.allclose(found[index], expected, rtol=1e-4), head


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_fused_kernel_of_torch_is_kept_away(batch_first):
    attention = nn.MultiheadAttention(12, 2, batch_first=batch_first).eval()
    x = torch.randn(3, 4, 12)
    seen = []

    def see(z, weight):
        seen.append(weight is attention.out_proj.weight)
        return z

    with torch.no_grad():
        expected = attention(x, x, x)[0]
        with LinearInputs(see):
            found = attention(x, x, x)[0]
    assert any(seen)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_order_of_rows_is_told_from_one_row_alone():
    row, other = torch.randn(4, 6), torch.randn(4, 6)
    assert row_order(torch.cat([row, other]), row) == "batch-major"
    assert row_order(torch.stack([row, other]), row[None]) == "batch-major"
    assert row_order(torch.stack([row, other], dim=1).flatten(0, 1), row) == "time-major"
    assert row_order(torch.cat([other, row]), row) is None
    assert row_order(torch.cat([row, other, row])[:11], row) is None
