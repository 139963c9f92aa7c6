"""Numbers of attention weights against the formulas, written out over full maps of the model's own eager attention."""

from math import log, sqrt

import pytest
import torch
import transformers
from families import build, inspected, sentences, t5, toy_tokenizer

import headprune as hp
from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES
from headprune.analysis.repeats import repeated_sequences
from headprune.analysis.statistics import measure_attention
from headprune.batch import Batch
from headprune.passes import RunContext
from headprune.runtime.journal import Journal

CLS, SEP, POINTS = 1, 2, (5, 9)
VOCABULARY = Vocabulary(CLS, SEP, POINTS, (CLS, SEP, 0), torch.arange(96).roll(7))
ON_TOKENS = [role for role in ROLES.values() if role.reads in ("rows", "repeats")]


def rows(lengths=(9, 12, 5, 7), *, seed=0):
    torch.manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, 20, (length,))
        ids[row, 0], ids[row, length - 1] = CLS, SEP
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def as_batch(inputs, *, start=0, example_of_row=None):
    count = len(next(iter(inputs.values())))
    owner = torch.arange(count) if example_of_row is None else torch.tensor(example_of_row)
    examples = int(owner.max()) + 1
    return Batch(inputs, torch.zeros(examples), owner, torch.arange(start, start + examples))


def measured(model, anatomy, batches, roles=ON_TOKENS, *, context=None):
    return measure_attention(
        model,
        anatomy,
        roles,
        batches=batches,
        vocabulary=VOCABULARY,
        context=context or RunContext(),
        name="test",
    )


def copies(t, keys):
    return [s for s in range(t) if keys[s] == keys[t]]


def top(a):
    return [s for s in range(len(a)) if a[s] == max(a)]


def rarest(keys):
    counts = {
        s: int(VOCABULARY.counts[key])
        for s, key in enumerate(keys)
        if key not in VOCABULARY.special
    }
    return [s for s, count in counts.items() if count == min(counts.values())]


# Of a query t with weights a over real keys: ANY for every attention, SELF for self-attention, and by the tokens at the keys.
ANY = {
    "sink": lambda a, t: a[0],
    "broad": lambda a, t: -sum(w * log(w) for w in a if w > 0),
    "confident": lambda a, t: max(a),
}
SELF = {
    "previous": lambda a, t: a[t - 1] if t else 0.0,
    "previous-random": lambda a, t: a[t - 1] if t else 0.0,
    "next": lambda a, t: a[t + 1] if t + 1 < len(a) else 0.0,
    "self": lambda a, t: a[t],
    "distance": lambda a, t: sum(w * abs(s - t) for s, w in enumerate(a)),
}
BY_TOKEN = {
    "cls": lambda a, keys: sum(w for w, key in zip(a, keys, strict=True) if key == CLS),
    "sep": lambda a, keys: sum(w for w, key in zip(a, keys, strict=True) if key == SEP),
    "punctuation": lambda a, keys: sum(w for w, key in zip(a, keys, strict=True) if key in POINTS),
    "rare": lambda a, keys: len({*top(a)} & {*rarest(keys)}) / len(top(a)),
}
LOOKED_AT = {
    "duplicate": copies,
    "induction": lambda t, keys: [s + 1 for s in copies(t, keys) if s + 1 < len(keys)],
}


def numbers_of(name, a, t, ids, keys, *, cross):
    """Yield (column, number) of one query, as the formulas say."""
    if name in ANY:
        yield "", ANY[name](a, t)
    elif name in BY_TOKEN and keys is not None:
        yield "", BY_TOKEN[name](a, keys)
    elif name == "diagonal" and cross:
        last = (max(1, len(ids) - 1), max(1, len(a) - 1))
        yield "", 1 - sum(w * abs(t / last[0] - s / last[1]) for s, w in enumerate(a))
    elif name in SELF and not cross:
        yield "", SELF[name](a, t)
    elif name == "offset" and not cross:
        for step in (*range(-8, 0), *range(1, 9)):
            yield f"{step:+d}", ((t + step) in top(a)) / len(top(a))
    elif name in LOOKED_AT and keys is not None and not cross and (at := LOOKED_AT[name](t, keys)):
        yield "", sum(a[s] for s in at)


def by_hand(name, maps, *, cross=False, tokens=True):
    """Return the ratio and its half interval by column, of maps [(example, weights [queries, keys], query ids, key ids)]."""
    sums = {}
    for example, weights, ids, keys in maps:
        for t, a in enumerate(weights.double().tolist()):
            for column, number in numbers_of(
                name, a, t, ids, keys if tokens else None, cross=cross
            ):
                total = sums.setdefault(column, {}).setdefault(example, [0.0, 0])
                total[0] += number
                total[1] += 1
    found = {}
    for column, by_example in sums.items():
        count = sum(c for _, c in by_example.values())
        ratio = sum(s for s, _ in by_example.values()) / count
        n = len(by_example)
        spread = sum((s - ratio * c) ** 2 for s, c in by_example.values())
        half = 1.96 * sqrt(spread * n / (n - 1)) / count if n > 1 else None
        found[column] = (ratio, half, count, n)
    return found


def check(measures, anatomy, maps_of, *, cross=(), tokens=True):
    """Hold every number of every head to the formulas."""
    compared = 0
    for role in ON_TOKENS:
        if role.name == "window":
            continue
        for index, head in enumerate(anatomy.heads):
            site = next(site for site in anatomy.sites if site.id == head.site)
            expected = by_hand(
                role.name, maps_of(site, head.head), cross=head.site in cross, tokens=tokens
            )
            for one in (one for one in measures if one.role == role.name):
                if one.column not in expected:
                    assert one.values[index] is None
                    continue
                ratio, half, count, n = expected[one.column]
                assert one.values[index] == pytest.approx(ratio, abs=1e-5)
                assert one.queries[index] == count
                assert one.examples[index] == n
                if half is not None:
                    assert (one.high[index] - one.low[index]) / 2 == pytest.approx(half, abs=1e-5)
                compared += 1
    return compared


def self_maps(model, anatomy, inputs, *, owner=None, **more):
    """Return ``maps_of(site, head)`` of a model with one stack, padding cut off."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, **more, output_attentions=True).attentions
    lengths = inputs["attention_mask"].sum(1).tolist()

    def maps_of(site, head):
        place = site.heads.index(head)
        for row, length in enumerate(lengths):
            ids = inputs["input_ids"][row, :length].tolist()
            weights = maps[site.id.layer][row, place, :length, :length]
            yield (row if owner is None else owner[row]), weights, ids, ids

    return maps_of


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_numbers_are_those_of_full_maps_on_padded_rows(family):
    model = build(family)
    anatomy = inspected(model)
    inputs = rows()
    measures = measured(model, anatomy, [as_batch(inputs)])
    assert model.config._attn_implementation == "sdpa"
    assert check(measures, anatomy, self_maps(model, anatomy, inputs)) > 500


def test_rows_of_one_example_count_together_and_batches_add_up():
    model = build("bert")
    anatomy = inspected(model)
    inputs, owner = rows((9, 12, 5, 7)), [0, 0, 1, 1]
    whole = measured(model, anatomy, [as_batch(inputs, example_of_row=owner)])
    assert check(whole, anatomy, self_maps(model, anatomy, inputs, owner=owner)) > 500
    apart = rows((9, 12, 5, 7))
    parts = [
        as_batch({name: value[:2] for name, value in apart.items()}),
        as_batch({name: value[2:] for name, value in apart.items()}, start=2),
    ]
    assert check(measured(model, anatomy, parts), anatomy, self_maps(model, anatomy, apart)) > 500


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_pruned_model_is_measured_on_the_heads_that_are_left(family):
    model = build(family)
    hp.prune(model, {"L1": [0, 1], "L2": [4, 5]})
    anatomy = hp.inspect(model)
    inputs = rows()
    assert len(anatomy.heads) < sum(site.num_heads for site in anatomy.sites)
    measures = measured(model, anatomy, [as_batch(inputs)])
    assert check(measures, anatomy, self_maps(model, anatomy, inputs)) > 300


def test_cross_attention_has_queries_and_keys_of_its_own():
    model = t5()
    anatomy = inspected(model)
    inputs = {**rows(), "decoder_input_ids": torch.randint(3, 20, (4, 6))}
    measures = measured(model, anatomy, [as_batch(inputs)])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    lengths = inputs["attention_mask"].sum(1).tolist()

    def maps_of(site, head):
        kind = (site.id.stack, site.id.kind)
        stack = {
            ("encoder", "self"): out.encoder_attentions,
            ("decoder", "self"): out.decoder_attentions,
            ("decoder", "cross"): out.cross_attentions,
        }[kind]
        for row, length in enumerate(lengths):
            source, target = (
                inputs["input_ids"][row, :length].tolist(),
                inputs["decoder_input_ids"][row].tolist(),
            )
            ids, keys = {
                ("encoder", "self"): (source, source),
                ("decoder", "self"): (target, target),
                ("decoder", "cross"): (target, source),
            }[kind]
            yield (
                row,
                stack[site.id.layer][row, site.heads.index(head), : len(ids), : len(keys)],
                ids,
                keys,
            )

    cross = {site.id for site in anatomy.sites if site.id.kind == "cross"}
    assert cross
    assert check(measures, anatomy, maps_of, cross=cross) > 500
    diagonal = next(one for one in measures if one.role == "diagonal")
    has_it = {
        head.site.kind
        for head, value in zip(anatomy.heads, diagonal.values, strict=True)
        if value is not None
    }
    assert has_it == {"cross"}


def test_positions_that_are_no_tokens_have_numbers_of_position_alone():
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=40,
        image_size=12,
        patch_size=4,
        initializer_range=0.4,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    anatomy = inspected(model)
    inputs = {"pixel_values": torch.randn(4, 3, 12, 12)}
    measures = measured(model, anatomy, [as_batch(inputs)])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions

    def maps_of(site, head):
        for row in range(4):
            yield row, maps[site.id.layer][row, site.heads.index(head)], list(range(10)), None

    assert check(measures, anatomy, maps_of, tokens=False) > 100
    assert {one.role for one in measures}.isdisjoint({"cls", "rare", "induction"})


def test_the_baseline_is_attention_spread_over_what_the_mask_lets_see():
    model = build("gpt2")
    anatomy = inspected(model)
    inputs = rows((6, 6))
    values = {
        one.role: one.baseline[0]
        for one in measured(model, anatomy, [as_batch(inputs)])
        if not one.column
    }
    assert values["sink"] == pytest.approx(sum(1 / t for t in range(1, 7)) / 6, abs=1e-6)
    assert values["broad"] == pytest.approx(sum(log(t) for t in range(1, 7)) / 6, abs=1e-6)
    assert values["next"] == 0
    assert values["window"] == pytest.approx(sum(range(1, 7)) / 36, abs=1e-6)


def test_numbers_on_random_tokens_said_twice_are_those_of_transformerlens():
    """Its ``mul`` score is the sum of weights times a pattern over the sum of all weights, so it counts every query."""
    model = build("llama", max_position_embeddings=64)
    anatomy = inspected(model)
    (batch,) = repeated_sequences(
        vocabulary=96, special=[0, 1, 2], start=1, length=11, count=4, seed=3
    )
    ids = batch.inputs["input_ids"]
    assert ids.shape == (4, 23)
    assert torch.equal(ids[:, 1:12], ids[:, 12:])
    assert not bool((ids[:, 1:] < 3).any())
    roles = [ROLES[name] for name in ("induction", "duplicate", "previous-random")]
    measures = {one.role: one for one in measured(model, anatomy, [batch], roles)}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**batch.inputs, output_attentions=True).attentions
    same = (ids[:, :, None] == ids[:, None, :]).float().tril(-1)
    shifted = torch.zeros_like(same)
    shifted[:, :, 1:] = same[:, :, :-1]
    shifted = shifted.tril()
    before = torch.diag(torch.ones(22), -1).expand(4, 23, 23)
    for name, pattern in (("induction", shifted), ("duplicate", same), ("previous-random", before)):
        one = measures[name]
        for index, head in enumerate(anatomy.heads):
            site = next(site for site in anatomy.sites if site.id == head.site)
            weights = maps[head.site.layer][:, site.heads.index(head.head)]
            mul = float((weights * pattern).sum() / weights.sum())
            counted = one.queries[index] / (4 * 23)
            assert one.values[index] * counted == pytest.approx(mul, abs=1e-5)
        assert one.queries[0] == (4 * 23 if name == "previous-random" else 4 * 11)


def test_a_stopped_pass_goes_on_from_the_batches_that_are_done(tmp_path):
    model = build("bert")
    anatomy = inspected(model)
    inputs = rows()
    parts = [
        as_batch({name: value[index : index + 1] for name, value in inputs.items()}, start=index)
        for index in range(4)
    ]
    expected = measured(model, anatomy, parts)
    journal = Journal(tmp_path)
    seen = 0

    def stops(items, _name):
        nonlocal seen
        for item in items:
            if seen == 2:
                raise KeyboardInterrupt
            seen += 1
            yield item

    with pytest.raises(KeyboardInterrupt):
        measured(model, anatomy, parts, context=RunContext(track=stops, journal=journal))
    assert journal.count() == 2
    assert measured(model, anatomy, parts, context=RunContext(journal=journal)) == expected


def test_the_vocabulary_is_read_from_tokenizer_and_rows():
    tokenizer = toy_tokenizer()
    texts = sentences(6)
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    vocabulary = Vocabulary.of(tokenizer, [as_batch(inputs)])
    assert vocabulary.cls == tokenizer.cls_token_id
    assert int(vocabulary.counts.sum()) == int(inputs["attention_mask"].sum())


def test_texts_packed_into_a_row_are_texts_of_their_own():
    model = build("llama", max_position_embeddings=64)
    anatomy = inspected(model)
    texts = rows((9, 7))
    apart = [texts["input_ids"][0, :9], texts["input_ids"][1, :7]]
    packed = {
        "input_ids": torch.cat(apart)[None],
        "position_ids": torch.cat([torch.arange(9), torch.arange(7)])[None],
    }
    one = measured(model, anatomy, [as_batch(packed)])
    two = measured(model, anatomy, [as_batch(texts, example_of_row=[0, 0])])
    for packed_one, apart_one in zip(one, two, strict=True):
        assert packed_one.queries == apart_one.queries, packed_one.role
        assert packed_one.values == pytest.approx(apart_one.values, abs=1e-5), packed_one.role
        assert packed_one.baseline == pytest.approx(apart_one.baseline, abs=1e-5), packed_one.role
