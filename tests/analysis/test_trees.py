"""Parsed sentences: how they are read, where their words lie, and the numbers of syntax against loops over full maps."""

from random import Random

import pytest
import torch
from families import WORDS, build, inspected, t5, toy_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES
from headprune.analysis.statistics import measure_attention
from headprune.analysis.trees import Sentence, read_sentences, sentence_batches
from headprune.errors import DataError, UnsupportedError
from headprune.passes import RunContext

ENGLISH = """# text = I don't know it.
1\tI\ti\tPRON\t_\t_\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\t_\t_\t4\taux:neg\t_\tSpaceAfter=No
3\tn't\tnot\tPART\t_\t_\t4\tadvmod\t_\t_
4\tknow\tknow\tVERB\t_\t_\t0\troot\t_\t_
4.1\tthat\t_\t_\t_\t_\t_\t_\t_\t_
5\tit\tit\tPRON\t_\t_\t4\tobj\t_\tSpaceAfter=No
6\t.\t.\tPUNCT\t_\t_\t4\tpunct\t_\t_

"""
RELATIONS = ("det", "obj", "nsubj")


def test_words_heads_and_spaces_are_read_and_subtypes_left_out(tmp_path):
    path = tmp_path / "a.conllu"
    path.write_text(ENGLISH + ENGLISH.rstrip("\n"), encoding="utf-8")
    first, second = read_sentences(path)
    assert first == second
    assert first.text == "I don't know it."
    assert first.words == ("I", "do", "n't", "know", "it", ".")
    assert [
        first.text[start:][: len(word)]
        for start, word in zip(first.starts, first.words, strict=True)
    ] == [*first.words]
    assert first.heads == (3, 3, 3, -1, 3, 3)
    assert first.relations == ("nsubj", "aux", "advmod", "root", "obj", "punct")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "no sentence"),
        ("# only a comment\n", "no sentence"),
        ("1\tI\n", "line 1: it has 2 fields"),
        (ENGLISH.replace("\t4\tobj", "\t9\tobj"), "has no head in it"),
        (ENGLISH.replace("\t4\tobj", "\t_\tobj"), "has no head in it"),
    ],
)
def test_what_is_no_tree_is_refused_with_its_line(tmp_path, content, what):
    path = tmp_path / "a.conllu"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=what):
        read_sentences(path)


def random_sentences(count, *, seed=0):
    """Return sentences of two-piece words now and then: the toy tokenizer splits at hyphens."""
    random = Random(seed)
    sentences = []
    for _ in range(count):
        length = random.randint(3, 9)
        words = ["-".join(random.choices(WORDS, k=random.choice((1, 1, 2)))) for _ in range(length)]
        root = random.randrange(length)
        heads = [
            -1 if word == root else random.choice([h for h in range(length) if h != word])
            for word in range(length)
        ]
        starts, text = [], ""
        for word in words:
            starts.append(len(text))
            text += word + " "
        relations = ["root" if head < 0 else random.choice(RELATIONS) for head in heads]
        sentences.append(
            Sentence(tuple(words), tuple(heads), tuple(relations), text.rstrip(), tuple(starts))
        )
    return sentences


@given(seed=st.integers(0, 10_000), longest=st.integers(3, 40))
@settings(max_examples=25, deadline=None)
def test_every_piece_belongs_to_the_word_it_was_cut_from(seed, longest):
    tokenizer, sentences = toy_tokenizer(), random_sentences(3, seed=seed)
    batches, trees = sentence_batches(sentences, tokenizer, max_length=longest, decoder_start=None)
    assert sorted(int(index) for batch in batches for index in batch.indices) == [0, 1, 2]
    for batch in batches:
        for row, index in enumerate(batch.indices.tolist()):
            tree, sentence = trees[index], sentences[index]
            pieces = tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][row].tolist())
            texts = [
                "".join(pieces[p] for p in place.nonzero().flatten().tolist())
                for place in tree.members
            ]
            whole = ["".join(tokenizer.tokenize(word)) for word in sentence.words]
            assert texts[:-1] == whole[: len(texts) - 1]  # the last may have been cut
            assert whole[len(texts) - 1].startswith(texts[-1])
            kept = [head if head < len(texts) else -1 for head in sentence.heads[: len(texts)]]
            assert tree.heads.tolist() == kept


def by_loops(weights, tree, relation, direction):
    """Yield whether the largest weight is right, for each dependent of a relation."""
    pieces = [place.nonzero().flatten().tolist() for place in tree.members]
    for word, head in enumerate(tree.heads.tolist()):
        if head < 0 or tree.relations[word] != relation:
            continue
        asking, expected = (word, head) if direction == "to head" else (head, word)
        to_words = {
            other: sum(weights[p][q] for p in pieces[asking] for q in pieces[other])
            / len(pieces[asking])
            for other in range(len(pieces))
            if other != asking
        }
        top = [other for other, weight in to_words.items() if weight == max(to_words.values())]
        yield (expected in top) / len(top), expected - asking


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_numbers_of_syntax_are_those_of_loops_over_full_maps(family):
    model = build(family)
    anatomy = inspected(model)
    tokenizer, sentences = toy_tokenizer(), random_sentences(40)
    batches, trees = sentence_batches(sentences, tokenizer, max_length=64, decoder_start=None)
    vocabulary = Vocabulary(trees=trees, relations=RELATIONS)
    measures = measure_attention(
        model,
        anatomy,
        [ROLES["syntax"]],
        batches=batches,
        vocabulary=vocabulary,
        context=RunContext(),
        name="test",
    )
    assert {one.column for one in measures} == {
        f"{r} {d}" for r in RELATIONS for d in ("to head", "to dependent")
    }
    model.set_attn_implementation("eager")
    outputs = {}
    for batch in batches:
        with torch.no_grad():
            maps = model(**batch.inputs, output_attentions=True).attentions
        for row, index in enumerate(batch.indices.tolist()):
            outputs[index] = [layer[row] for layer in maps]
    for one in measures:
        relation, _, direction = one.column.partition(" ")
        for place, head in enumerate(anatomy.heads):
            right = [
                pair
                for index, maps in outputs.items()
                for pair in by_loops(
                    maps[head.site.layer][head.head].tolist(), trees[index], relation, direction
                )
            ]
            assert one.queries[place] == len(right)
            assert one.values[place] == pytest.approx(
                sum(found for found, _ in right) / len(right), abs=1e-5
            )
            offsets = [ahead for _, ahead in right]
            best = max(offsets.count(step) for step in range(-8, 9)) / len(right)
            assert one.baseline[place] == pytest.approx(best, abs=1e-6)


def test_a_tokenizer_that_tells_no_places_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedError, match="where its tokens lie"):
        sentence_batches(random_sentences(1), Slow(), max_length=8, decoder_start=None)


def test_a_decoder_says_the_sentence_again_and_only_the_encoder_has_syntax():
    model, tokenizer = t5(), toy_tokenizer()
    anatomy = inspected(model)
    batches, trees = sentence_batches(
        random_sentences(25), tokenizer, max_length=64, decoder_start=0
    )
    for batch in batches:
        ids, again = batch.inputs["input_ids"], batch.inputs["decoder_input_ids"]
        assert torch.equal(batch.inputs["decoder_attention_mask"], batch.inputs["attention_mask"])
        real = batch.inputs["attention_mask"][:, 1:].bool()
        assert torch.equal(again[:, 1:][real], ids[:, :-1][real])
        assert not bool(again[:, 0].any())
    (one, *_) = measure_attention(
        model, anatomy, [ROLES["syntax"]], batches=batches,
        vocabulary=Vocabulary(trees=trees, relations=RELATIONS), context=RunContext(), name="test",
    )  # fmt: skip
    has_it = {
        (head.site.stack, head.site.kind)
        for head, value in zip(anatomy.heads, one.values, strict=True)
        if value is not None
    }
    assert has_it == {("encoder", "self")}
