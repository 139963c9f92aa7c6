"""Whatever a file of rows holds is read back as it was written, or refused with its line: never as other cells."""

import csv
import gzip
import io
import json
import os
import re

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from families import WORDS, build, sentences, toy_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from headprune.errors import DataError
from headprune.tasks.batches import InputFormat
from headprune.tasks.causal_lm import prose_of
from headprune.tasks.columns import Columns, choose_columns, number_of, texts_of
from headprune.tasks.rows import prose_without_rows_of, read_table, without_rows_of
from headprune.tasks.tables import Table
from headprune.tasks.task import get_task

NAMES = ("text", "label", "a b", "id")
CELLS = st.text(st.sampled_from("ab \"',;|\t\n\r\\0é\u2028\u0085漢"), max_size=6)
PLAIN_CELLS = st.text(st.sampled_from("ab \"',\\0é\u2028"), max_size=6).filter(
    lambda cell: not (cell.startswith('"') and cell.endswith('"'))
)


def tables(cells, **sizes):
    """Return a strategy for rows of one width."""
    sizes = {"min_size": 1, "max_size": 6, **sizes}
    return st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), **sizes)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def cells_of(path):
    table = read_table(str(path))
    return [list(row.values()) for row in table.rows]


def written_by_csv(path, rows, **dialect):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **dialect).writerows([NAMES[: len(rows[0])], *rows])
    return path


# Never other cells.


@given(
    tables(CELLS),
    st.sampled_from([".csv", ".tsv"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
)
@example([["a\tb\nc", "d"]], ".tsv", csv.QUOTE_MINIMAL, "\n")
@settings(max_examples=200)
def test_what_csv_writes_is_read_back_or_refused_with_its_line(folder, rows, suffix, quoting, end):
    path = written_by_csv(
        folder / f"d{suffix}",
        rows,
        delimiter="," if suffix == ".csv" else "\t",
        quoting=quoting,
        lineterminator=end,
    )
    # The csv module leaves \r unquoted where lines end in \n; and texts with tabs and line breaks below a header without quotes
    # can be meant in two ways.
    unclear = (end == "\n" and any("\r" in cell for row in rows for cell in row)) or (
        suffix == ".tsv" and quoting == csv.QUOTE_MINIMAL
    )
    try:
        assert cells_of(path) == rows
    except DataError as error:
        assert unclear, error
        assert "line " in error.what


@given(tables(PLAIN_CELLS))
@settings(max_examples=100)
def test_unquoted_tabs_are_rows_as_they_stand(folder, rows):
    lines = ["\t".join(row) + "\n" for row in [NAMES[: len(rows[0])], *rows]]
    (folder / "g.tsv").write_text("".join(lines), encoding="utf-8", newline="")
    assert cells_of(folder / "g.tsv") == rows


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        (['"Stop!"\t1', "a b\t0"], ['"Stop!"', "a b"]),
        (['"Stop!"\t1', '"a b"\t0'], ["Stop!", "a b"]),
        (['"Go on.\t1', "a\t0", 'said "b"\t1', 'c."\t0'], ['"Go on.', "a", 'said "b"', 'c."']),
        (['"Go on.\t1', "a\t0", '"She left.\t0'], ['"Go on.', "a", '"She left.']),
        (['"a ""b"" c"\t1', '"with\ttab"\t0'], ['a "b" c', "with\ttab"]),
        (['"one', 'two"\t1', "a\t0"], ["one\ntwo", "a"]),
    ],
)
def test_quotation_marks_in_tsv_are_quotes_where_they_are_meant_so(tmp_path, lines, texts):
    path = tmp_path / "d.tsv"
    path.write_text("".join(f"{line}\n" for line in ["text\tlabel", *lines]))
    assert [row["text"] for row in read_table(str(path)).rows] == texts


@given(
    tables(CELLS, min_size=2),
    st.data(),
    st.sampled_from([".csv", ".tsv"]),
)
@settings(max_examples=100)
def test_a_row_of_another_width_is_refused_with_its_line(folder, rows, data, suffix):
    rows = [[*row, "x"] for row in rows]  # two columns or more
    names = [f"c{index}" for index in range(len(rows[0]))]
    index = data.draw(st.integers(0, len(rows) - 1))
    rows[index] = data.draw(st.sampled_from([rows[index][:-1], [*rows[index], "y"]]))
    text = io.StringIO()
    mark = "," if suffix == ".csv" else "\t"
    csv.writer(text, delimiter=mark, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    (folder / f"w{suffix}").write_text(text.getvalue(), encoding="utf-8", newline="")
    line = 2 + index + sum(_breaks(cell) for row in rows[:index] for cell in row)
    with pytest.raises(DataError, match=f"line {line}: it has"):
        read_table(str(folder / f"w{suffix}"))


def _breaks(cell):
    return len(re.findall(r"\r\n|\n|\r", cell))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | CELLS
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@given(tables(VALUES), st.sampled_from([".json", ".jsonl", ".ndjson", "lines.json"]), st.booleans())
@settings(max_examples=60)
def test_what_json_writes_is_read_back(folder, rows, ending, as_ascii):
    records = [dict(zip(NAMES, row, strict=False)) for row in rows]
    lines = [json.dumps(record, ensure_ascii=as_ascii) for record in records]
    text = f"[{', '.join(lines)}]" if ending == ".json" else "".join(f"{li}\r\n" for li in lines)
    path = folder / f"d{ending}"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        found = read_table(str(path)).rows
    except DataError as error:
        assert len(rows) == 1, error  # one object with lists in it may be rows in a wrapping
        assert "not a list of rows" in error.what
        return
    assert repr(list(found)) == repr(records)  # True is not 1, nor 1.0


COLUMNS = st.one_of(
    *(
        st.tuples(st.just(kind), st.lists(st.none() | cells, min_size=3, max_size=3))
        for kind, cells in [
            (pyarrow.string(), CELLS),
            (pyarrow.large_string(), st.text(max_size=4)),
            (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), CELLS),
            (pyarrow.int64(), st.integers(-(2**63), 2**63 - 1)),
            (pyarrow.float64(), st.floats(allow_nan=False)),
            (pyarrow.bool_(), st.booleans()),
            (pyarrow.list_(pyarrow.string()), st.lists(CELLS, max_size=2)),
        ]
    )
)


@given(st.lists(COLUMNS, min_size=1, max_size=4), st.sampled_from(["parquet", "stream", "file"]))
@settings(max_examples=100)
def test_what_pyarrow_writes_is_read_back(folder, columns, form):
    table = pyarrow.table(
        {name: pyarrow.array(v, kind) for name, (kind, v) in zip(NAMES, columns, strict=False)}
    )
    path = folder / ("d.parquet" if form == "parquet" else "d.arrow")
    if form == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
        make = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
        with make(path, table.schema) as writer:
            writer.write_table(table)
    rows = [list(row) for row in zip(*(v for _kind, v in columns), strict=True)]
    assert repr(cells_of(path)) == repr(rows)


def test_no_column_changes_its_mind_late(folder):
    rows = [["2012", "01"] for _ in range(10_050)]
    rows[10_020] = ["true", "n/a"]
    rows[10_040] = ["1e5", "NaN"]
    path = written_by_csv(folder / "late.csv", rows)
    assert cells_of(path) == rows
    table = read_table(str(path))
    assert texts_of(table, 10_020, choose_columns(table)) == ("true",)
    assert table.name_of(10_020) == "row 10020 (line 10022)"


# Named.

ROWS = [(text, index % 2) for index, text in enumerate(sentences(12))]
PLAIN = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
OBJECTS = [{"text": text, "label": label} for text, label in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("semicolons.csv", PLAIN.replace(",", ";"), "line 1.*separated by ';'"),
        ("semicolons2.csv", '"text";"label"\n"a, b";1\n', "separated by ';'"),
        ("bars.csv", PLAIN.replace(",", "|"), "separated by"),
        ("tabs.csv", PLAIN.replace(",", "\t"), "separated by tabs"),
        ("commas.tsv", PLAIN, "separated by commas"),
        ("latin.csv", PLAIN.replace("w", "é", 1).encode("latin-1"), "line 2.*not UTF-8"),
        ("latin.jsonl", '{"text": "é"}'.encode("latin-1"), "line 1.*not UTF-8"),
        ("wide.csv", PLAIN.encode("utf-16"), "UTF-16"),
        ("wide.txt", PLAIN.encode("utf-16-le"), "UTF-16"),
        ("wide.json", json.dumps(OBJECTS).encode("utf-32"), "UTF-32"),
        ("packed.csv", gzip.compress(PLAIN.encode()), "compressed"),
        ("packed.csv.gz", gzip.compress(PLAIN.encode()), "compressed"),
        ("twice.csv", "text,text,label\na,b,1\n", "same name, 'text'"),
        ("twice.jsonl", '{"text": "a", "text": "b"}', "same name, 'text'"),
        ("data.json", json.dumps({"data": OBJECTS}), "'data' inside, not a list of rows"),
        ("columns.json", json.dumps({"text": ["a"], "label": [1]}), "not a list of rows"),
        ("texts.json", '["a", "b"]', "row 0 is a text"),
        ("list.jsonl", json.dumps(OBJECTS), "line 1: it is a list"),
        ("cut.jsonl", '{"text": "a"}\n{"text": "b', "line 2: the JSON is damaged"),
        ("deep.json", "[" * 100_000, "nested too deep"),
        ("digits.json", f'[{{"text": {"9" * 5000}}}]', "damaged"),
        ("quotes.csv", 'text,label\na,1\n"b,1\nc,0\n', "line 3.*never closed"),
        ("quotes2.csv", 'text,label\na,1\n"b,1\n"c",0\n', "line 3.*line 4"),
        ("gap.csv", "text,label\na,1\n\nb,1\n", "line 3: it has no fields"),
        ("ends.csv", "text,label\na,1\r\nb,1\n", r"line 2: it ends in \\r\\n"),
        ("two.tsv", 'text\tlabel\n"a\t1\nb"\t0\n', "line 2: a text begins with a quotation mark"),
        ("nothing.csv", "", "empty"),
        ("header.csv", "text,label\n", "no rows"),
        ("false.parquet", PLAIN, "no .parquet file"),
        ("false.csv", "PAR1\x15\x04", "parquet"),
        ("broken.parquet", "PAR1\x15\x04", "damaged"),
        ("false.arrow", "PAR1\x15\x04", "a parquet file, not a .arrow file"),
        *(
            (f"lfs.{end}", POINTER, "pointer of git-lfs")
            for end in ("txt", "csv", "jsonl", "parquet")
        ),
        ("nul.csv", PLAIN + "a\0b,1\n", "line 14: it holds a NUL character\n"),
        ("unknown.xyz", PLAIN, "format that isn't known"),
    ],
)
def test_files_as_people_have_them_are_named(tmp_path, name, content, words):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=words) as caught:
        read_table(str(tmp_path / name))
    assert name in caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (f"{ROWS[0][0]} w1 w2,0", False),
        ("good,1", False),
        ("w1 w2 w3 w4", False),
        ("words,kind", True),
        ("my text,label", True),
        ('"What, of all things, is the text?",label', True),
    ],
)
def test_a_first_line_that_is_no_header_is_named(tmp_path, first, named):
    path = tmp_path / "d.csv"
    rest = "a b,0\nc d,1\n" if "," in first else "a b\nc d\n"
    path.write_text(f"{first}\n{rest}")
    table = read_table(str(path))
    settings = {"needs_label": False}
    if named:
        assert choose_columns(table, **settings).texts == (table.columns[0],)
        return
    with pytest.raises(DataError, match="header"):
        choose_columns(table, **settings)
    with pytest.raises(DataError) as caught:
        choose_columns(table, texts=("text",))
    assert "header" in caught.value.hint
    told = choose_columns(table, texts=table.columns[:1], **settings)
    assert told.texts == table.columns[:1], "what the user names is a name"


NEW_LINES = {"\r\n": "crlf", "\r": "cr", "\n": "lf"}


@pytest.mark.parametrize("end", NEW_LINES, ids=NEW_LINES.get)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt", ".CSV"])
def test_line_ends_and_marks_of_editors_are_no_content(tmp_path, suffix, mark, end):
    lines = {
        ".tsv": PLAIN.replace(",", "\t"),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in OBJECTS),
        ".txt": "".join(f"{text}\n" for text, _label in ROWS),
    }.get(suffix, PLAIN)
    path = tmp_path / f"d{suffix}"
    path.write_bytes(mark + lines.replace("\n", end).encode())
    table = read_table(str(path))
    assert [row["text"] for row in table.rows] == [text for text, _label in ROWS]
    assert suffix == ".txt" or table.columns == ("text", "label")


@pytest.mark.parametrize("name", ["a[1].csv", "*.csv", "a?.csv", "x::y.csv", "zip:", "[!a].csv"])
def test_names_are_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in ("a1.csv", "b.csv"):
        (tmp_path / other).write_text("text,label\nother,0\n")
    with pytest.raises(DataError) as caught:
        read_table(name)
    assert name in f"{caught.value}"
    if name.endswith(".csv"):
        (tmp_path / name).write_text("text,label\nright,0\n")
        assert cells_of(name) == [["right", "0"]]


@pytest.mark.parametrize("name", ["rows", "rows:train", "d.csv"])
def test_folders_and_pipes_are_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.csv").write_text(PLAIN)
    os.mkfifo("d.csv")
    with pytest.raises(DataError, match="a pipe" if name == "d.csv" else "a folder") as caught:
        read_table(name)
    assert name == "d.csv" or "rows/train.csv" in caught.value.hint


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_the_datasets_library_is_to_be_written_as_one_file(tmp_path, shards):
    """One of its files may hold a part of the rows, and the others hold none."""
    rows = datasets.Dataset.from_list(OBJECTS)
    rows.save_to_disk(tmp_path / "d", num_shards=shards)
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "splits")
    for name in ("d", "splits"):
        with pytest.raises(DataError, match="is a folder") as caught:
            read_table(str(tmp_path / name))
        assert "load_from_disk" in caught.value.hint
        assert ".json" not in caught.value.hint


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "txt", "parquet"])
def test_the_file_is_read_as_it_is_now(tmp_path, suffix):
    path = tmp_path / f"d.{suffix}"
    for text in ("w1 w2", "w3 w4"):
        match suffix:
            case "parquet":
                pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), path)
            case "txt":
                path.write_text(text)
            case "json" | "jsonl":
                path.write_text(json.dumps([{"text": text}])[slice(*_ends(suffix))])
            case _:
                path.write_text(f"text\n{text}\n")
        os.utime(path, (1, 1))
        assert cells_of(path) == [[text]]


def _ends(suffix):
    return (None, None) if suffix == "json" else (1, -1)


# Asked, not chosen.


def table_of(columns):
    rows = [
        {
            name: index % 2 if "label" in name.lower() or name == "id" else f"{text} ({name})"
            for name in columns
        }
        for index, text in enumerate(sentences(6))
    ]
    return Table("d.csv", None, tuple(columns), rows)


@pytest.mark.parametrize(
    ("num_texts", "columns"),
    [
        ((1, 2), ("text",)),
        ((1,), ("text",)),
        ((2,), ("text",)),
        ((2,), ("sentence1", "sentence2")),
    ],
)
def test_data_without_room_for_a_label_says_what_the_task_reads(num_texts, columns):
    with pytest.raises(
        DataError, match=r"reads .* and a label, and the data has .* alone"
    ) as raised:
        choose_columns(table_of({name: ["w1 w2"] for name in columns}), num_texts=num_texts)
    assert "`label" not in raised.value.hint, "there is no column to name"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (("text", "label", "labels"), "'label', 'labels'"),
        (("text", "label", "Label"), "'label', 'Label'"),
        (("text", "label", "target"), "'label', 'target'"),
        *(
            ((first, second, "label"), f"'{first}', '{second}'")
            for first, second in [
                ("question", "passage"),
                ("question", "context"),
                ("query", "document"),
                ("anchor", "positive"),
                ("title", "text"),
                ("review", "title"),
                ("premise", "claim"),
                ("one", "other"),
            ]
        ),
    ],
)
def test_rivalling_columns_are_asked_about(columns, words):
    table = table_of(columns)
    with pytest.raises(DataError, match=words) as caught:
        choose_columns(table)
    assert "`text=" in caught.value.hint or "`label=" in caught.value.hint
    told = choose_columns(table, texts=columns[:1], label=columns[-1])
    assert (told.texts, told.label) == (columns[:1], columns[-1])


@pytest.mark.parametrize(
    ("columns", "texts", "settings"),
    [
        (("id", "text", "label"), ("text",), {}),
        ((" Text", "LABEL "), (" Text",), {}),
        (("label", "sentence2", "sentence1", "parse"), ("sentence1", "sentence2"), {}),
        (("question", "sentence", "label"), ("question", "sentence"), {}),
        (("said", "label"), ("said",), {}),
        (("one", "other", "label"), ("one", "other"), {"num_texts": (2,)}),
        (("title", "text"), ("text",), {"num_texts": (1,), "needs_label": False}),
    ],
)
def test_columns_that_can_only_be_meant_in_one_way_are_chosen(columns, texts, settings):
    assert choose_columns(table_of(columns), **settings).texts == texts


@pytest.mark.parametrize("cell", [7, 0.5, True, None, ["a", "b"], {"a": "b"}, b"a", "\ud800"])
@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_what_is_no_text_is_refused_with_what_it_holds(cell, task, tokenizer):
    rows = [{"text": text, "label": 0} for text in ("w1", "w2", cell)]
    table = Table("d.jsonl", None, ("text", "label"), rows, lines=(1, 2, 5))
    with pytest.raises(DataError, match=r"row 2 \(line 5\)") as caught:
        get_task(task).to_examples(
            table,
            Columns(("text",), "label", ""),
            InputFormat(tokenizer, 16, config=build("bert").config),
        )
    assert "text" in caught.value.what
    assert isinstance(cell, str) or repr(cell) in caught.value.what


@pytest.mark.parametrize(("cell", "number"), [("1e-3", 1e-3), (" 5", 5), ("+.5", 0.5), (3, 3)])
def test_numbers_of_texts_are_numbers(cell, number):
    assert number_of(Table("d", None, ("score",), [{"score": cell}]), 0, "score") == number
    for wrong in ("3,5", "nan", "", "1_0", "0x1", True, float("nan")):
        with pytest.raises(DataError, match="row 0"):
            number_of(Table("d", None, ("score",), [{"score": wrong}]), 0, "score")


# Prose, chats and texts without tokens.

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }}\n{% endfor %}"
)


def test_chats_go_through_the_model_s_template_or_are_refused():
    tokenizer = toy_tokenizer()
    chat = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    shared = [{"from": "human", "value": "w1"}]
    rows = [
        {"messages": chat},
        {"messages": shared},
        {"messages": [{"role": "tool", "content": "x"}]},
    ]
    table = Table("chat.jsonl", None, ("messages",), rows)
    with pytest.raises(DataError, match="'messages' holds chats.*no chat template"):
        prose_of(table, 0, "messages", tokenizer)
    tokenizer.chat_template = TEMPLATE
    assert prose_of(table, 0, "messages", tokenizer) == "<user> w1\n<assistant> w2\n"
    for row, words in ((1, "row 1 has no text in column 'messages'"), (2, "row 2.*no tools")):
        with pytest.raises(DataError, match=words):
            prose_of(table, row, "messages", tokenizer)
    with pytest.raises(DataError, match="row 0 has no text"):
        texts_of(table, 0, Columns(("messages",), "", ""))


def prose(text):
    rows = [{"text": line} for line in text.split("\n")]
    return Table("d.txt", None, ("text",), rows)


def test_blank_lines_and_headings_are_no_leaks_and_line_breaks_stay():
    shared = "it was the best of times it was the worst of times"
    one = f"= Contents =\n\nCHAPTER I\n\nfirst words of one\n{shared}\nmore\n* * *\nyes\n* * *"
    other = f"= Contents =\n\nCHAPTER I\n\nother words\n\n{shared}\nyes"
    left, count = prose_without_rows_of(prose(one), prose(other), column="text")
    # "yes" stands in both, alone among others: that may be anybody's line, and isn't a heading.
    assert "\n".join(row["text"] for row in left.rows) == one.replace(shared, "").replace("yes", "")
    assert count == 2


@given(st.lists(st.sampled_from(["", "a b", *WORDS[:3], "w " * 9]), max_size=12), st.data())
def test_lines_that_others_do_not_have_stay(lines, data):
    others = data.draw(st.lists(st.sampled_from(["", "a b", "w " * 9, "x"])))
    table, other = prose("\n".join(lines)), prose("\n".join(others))
    left, count = prose_without_rows_of(table, other, column="text")
    changed = [b["text"] for a, b in zip(left.rows, table.rows, strict=True) if a != b]
    assert len(changed) == count
    assert set(changed) <= set(others) - {""}
    assert not {"w " * 9} & {row["text"] for row in left.rows} & set(others)
    examples, count = without_rows_of(table, other, columns=("text",))
    assert len(examples.rows) + count == len(table.rows)
    assert not {r["text"] for r in examples.rows} & {r["text"] for r in other.rows}


@pytest.mark.parametrize("task", ["classification", "similarity"])
def test_a_text_without_tokens_is_named_by_row(tmp_path, task):
    path = tmp_path / "d.csv"
    path.write_text('sentence1,sentence2,label\n"w1\nw2",w3,1\nw4,\x07,0\n')
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    table = read_table(str(path))
    task = get_task(task)
    columns = choose_columns(table, num_texts=task.row.num_texts)
    given = InputFormat(tokenizer, 16, config=build("bert").config)
    examples = task.to_examples(table, columns, given)
    with pytest.raises(DataError, match="no tokens") as caught:
        task.to_batches(examples, given)
    assert caught.value.where == f"`data={path}`, row 1 (line 4)"
    task.to_batches(examples[:1], given)
