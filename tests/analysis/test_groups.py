"""``score --by`` and ``analyze --by``: every group as if it were alone, then compared."""

import pytest
from families import sentences

from headprune.analysis.comparison import Comparison
from headprune.analysis.roles import Roles
from headprune.artefact import read_artefact
from headprune.config import Settings
from headprune.errors import ConfigError, DataError
from headprune.plans import HeadScores
from headprune.tasks.rows import read_table
from headprune.workflows.groups import groups_of

SCORE = ("score", "m", "--method", "gradient", "--num-samples", "8")


@pytest.fixture
def grouped(here):
    """Rows of two languages, in one table and in a file each."""
    rows = [f"{text},{n % 2}" for n, text in enumerate(sentences(40))]
    parts = {"en": rows[:20], "de": rows[20:]}
    for name, part in parts.items():
        (here / f"{name}.csv").write_text("\n".join(["text,label", *part]) + "\n")
    pairs = zip(*parts.values(), strict=True)
    both = [f"{row},{name}" for pair in pairs for row, name in zip(pair, parts, strict=True)]
    (here / "both.csv").write_text("\n".join(["text,label,language", *both, "left out,0,"]) + "\n")
    return here


def test_a_group_is_scored_as_if_it_were_alone(grouped, command_line):
    for name in ("en", "de"):
        code, _out, err = command_line(*SCORE, "--data", f"{name}.csv", "--run-dir", f"alone/{name}")  # fmt: skip
        assert code == 0, err
    words = [("by", "language", "--data", "both.csv"), ("files", "en=en.csv,de=de.csv")]
    for run, *by in words:
        code, out, err = command_line(*SCORE, "--run-dir", run, "--by", *by)
        assert code == 0, err
        assert "Spearman" in out
        for name in ("en", "de"):
            alone, group = (
                read_artefact(HeadScores, grouped / folder / name / "scores.json")
                for folder in ("alone", run)
            )
            assert group.values == pytest.approx(alone.values, rel=1e-5)
            assert group.data["fingerprint"] == alone.data["fingerprint"]
        comparison = read_artefact(Comparison, grouped / run / "compare.json")
        assert [one.name for one in comparison.subjects] == ["en", "de"]
        assert not (grouped / run / "partial").exists()
    code, _out, err = command_line(*SCORE, "--run-dir", "by", "--by", "en=en.csv,de=de.csv")
    assert code == 2
    assert "holds scores already" in err


def test_a_stopped_run_goes_on_and_leaves_nothing_half_written(grouped, command_line):
    words = (*SCORE, "--by", "en=en.csv,fr=fr.csv")
    code, _out, _err = command_line(*words)
    assert code == 2
    assert not list(grouped.glob("headprune-runs/*-by"))
    (grouped / "fr.csv").write_text((grouped / "de.csv").read_text())
    code, _out, err = command_line(*words)
    assert code == 0, err
    assert err.count("going on with a run that was stopped") == 1
    assert (grouped / "headprune-runs/001-by/fr/scores.json").exists()


def test_analyze_by_group(grouped, command_line):
    words = ("analyze", "m", "--role", "sink,next", "--by", "language", "--data", "both.csv")
    code, out, err = command_line(*words)
    assert code == 0, err
    assert "Spearman" in out
    for name in ("en", "de"):
        roles = read_artefact(Roles, grouped / f"headprune-runs/001-by/{name}/roles.json")
        assert (roles.names, roles.data["n"]) == (("sink", "next"), 20)


def test_rows_are_chosen_by_a_value(grouped):
    table = read_table("both.csv")
    assert table.groups("language") == ("en", "de")
    german = table.only("language=de")
    assert [row["text"] for row in german.rows] == [row["text"] for row in read_table("de.csv").rows]  # fmt: skip
    assert german.name_of(0) == f"row 0 (line {table.lines[1]})"
    with pytest.raises(DataError, match="no column 'langauge'"):
        table.only("langauge=de")
    with pytest.raises(DataError, match="no row has 'fr'"):
        table.only("language=fr")


@pytest.mark.parametrize(
    ("by", "data"),
    [
        (["en=en.csv", "language"], {}),
        (["language"], {}),
        (["language"], {"data": "both.csv", "where": "language=de"}),
        (["en=en.csv"], {}),
        (["a/b=en.csv", "a-b=de.csv"], {}),
        (["..=en.csv", "de=de.csv"], {}),
    ],
)
def test_what_is_no_groups_is_refused(grouped, by, data):
    with pytest.raises(ConfigError):
        groups_of(Settings.of(model="m", **data), by)
