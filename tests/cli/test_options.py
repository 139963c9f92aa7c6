"""A command has the options that act in it: every switch can be taken back, and what would do nothing is refused."""

import json
import subprocess
import sys

import pytest
import typer
from test_gate import result_of

from headprune.cli import app as application
from headprune.cli import options, stopped_exit_code
from headprune.cli.options import ACTING, TALK, as_options
from headprune.config import SECTION_OF, Settings
from headprune.scoring.catalogue import METHODS
from headprune.tasks.catalogue import METRICS, TASKS

COMMANDS = typer.main.get_command(application.app).commands
DATA = ("--data", "d.csv")
NO_WORK = {"inspect", "convert", "export"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_switch_can_be_taken_back(name):
    for option in COMMANDS[name].params:
        if getattr(option, "is_flag", False) and option.name not in (*TALK, "help"):
            assert option.secondary_opts, f"{name} {option.opts} has no opposite"


@pytest.mark.parametrize("name", sorted(NO_WORK))
def test_commands_that_read_no_data_offer_none_of_its_options(name):
    offered = {option.name for option in COMMANDS[name].params}
    assert not offered & {
        *("data", "eval_data", "split", "text", "label", "metric", "limit", "max_length"),
        *("task", "seed", "batch_size", "device", "latency", "compile", "objective"),
    }


def test_settings_of_the_recipe_are_offered_by_some_command():
    offered = {option.name for command in COMMANDS.values() for option in command.params}
    assert offered >= {name.removeprefix("check.") for name in SECTION_OF}


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("eval", "m", *DATA, "--eval-data", "e.csv"), "--eval-data"),
        (("eval", "m", *DATA, "--split", "a", "--eval-split", "b"), "--eval-split"),
        (("eval", "m", *DATA, "--no-latency", "--latency-length", "9"), "--latency-length"),
        (("check", "r.json", *DATA, "--baseline", "b.json"), "--data"),
        (("check", "m", "--baseline", "b.json", "--update-baseline", "--max-drop", "0"), "--max-drop"),
        (("check", "m", "--baseline", "b.json", "--json", "--format", "junit"), "--format"),
        (("score", "m", *DATA, "--metric", "f1"), "--metric"),
        (("score", "m", *DATA, "--compile"), "--compile"),
        (("score", "m", *DATA, "--method", "random", "--keep", "0.5"), "--keep"),
        (("prune", "m", *DATA, "--keep", "0.5", "--reconstruct", "none", "--allow-bias"), "--allow-bias"),
        (("sweep", "m", *DATA, "--methods", "random", "--steps", "2"), "--steps"),
        (("prune", "m", *DATA, "--keep", "0.5", "--scores", "s.json", "--stream"), "--data"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_and_what_takes_one_back_is_not(
    words, option, command_line, run_here
):
    code, out, err = command_line(*words)
    assert (code, out) == (2, "")
    assert f"{option} has no effect here: " in err
    assert f"in:   {option}" in err


@pytest.mark.parametrize(
    "words", [("score", "--no-compile"), ("prune", "--keep", "1", "--no-allow-bias")]
)
def test_what_takes_an_option_back_is_never_idle(words, command_line, run_here):
    _code, _out, err = command_line(words[0], "nowhere", *DATA, *words[1:])
    assert "no effect" not in err
    assert "nowhere" in err


def test_a_missing_budget_is_told_before_steps_that_lead_nowhere(command_line, run_here):
    code, _out, err = command_line("prune", "m", *DATA, "--steps", "3")
    assert code == 2
    assert "it isn't said how many heads to keep" in err
    code, _out, err = command_line("prune", "m", *DATA, "--target-flops", "0.9", "--steps", "3")
    assert code == 2
    assert "steps need to know how many heads" in err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("prune", "--kepe", "0.5"), "headprune prune has no option --kepe", "did you mean --keep?"),
        (("prune", "--baseline", "b.json"), "headprune prune has no option --baseline", "it acts on check"),
        (("convert", "--keep", "0.5"), "headprune convert has no option --keep", "it acts on score, prune"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_act_is_refused_with_what_may_be_meant(
    words, message, hint, command_line, run_here
):
    code, out, err = command_line(*words)
    assert (code, out) == (2, "")
    assert f"error: {message}" in err
    assert hint in err


def test_options_say_what_their_fields_say():
    offered = {option.name: option for option in COMMANDS["prune"].params}
    for name, section in SECTION_OF.items():
        if name in ACTING["prune"] and ("prune", name) not in options._HELP:
            field = type(getattr(Settings(), section)).model_fields[name]
            assert offered[name].help.startswith(field.description)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`keep`", "--keep"),
        ("`max_drop=1%`", "--max-drop 1%"),
        ("`latency=False`", "--no-latency"),
        ("`overwrite=True`", "--overwrite"),
        ("`model`", "MODEL"),
        ("`name: value`", "`name: value`"),
        ("`check:`", "`check:`"),
        ("`prune`", "`prune`"),
        ("`gradient`", "`gradient`"),
        ("`max_parameters=9`", "--max-parameters 9"),
        ("`update_baseline`", "--update-baseline"),
    ],
)
def test_the_command_line_calls_fields_by_their_options(text, shown):
    assert as_options(f"a {text} b") == f"a {shown} b"


@pytest.mark.parametrize(
    ("command", "catalogue"), [("methods", METHODS), ("tasks", TASKS), ("metrics", METRICS)]
)
def test_catalogues_are_listed(command, catalogue, command_line):
    code, out, _err = command_line(command, "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)["rows"]] == list(catalogue)
    code, out, _err = command_line(command)
    assert code == 0
    assert all(name in out for name in catalogue)


WRONG = [
    ("prune", "m", "--keep", "2"),
    ("prune", "m", "--data", "d.csv"),
    ("prune", "m", "--keep", "0.5", "--max-drop", "1%"),
    ("prune", "m", "--keep", "0.5", "--kepe", "1"),
    ("score", "m", "--data", "d.csv", "--steps", "2"),
    ("score", "m", "--data", "d.csv", "--method", "gradiant"),
    ("score", "m", "--data", "d.csv", "--objective", "metric"),
    ("check", "m", "--data", "d.csv"),
    ("check", "r.json", "--baseline", "b.json", "--seed", "3"),
    ("convert", "m"),
    ("export", "m"),
    ("heal", "--data", "d.csv"),
    ("eval", "-c", "nowhere.yaml"),
]


def test_a_wrong_argument_is_answered_before_anything_heavy_is_imported(run_here):
    """All in one fresh process."""
    script = (
        "import sys\nfrom headprune.cli.app import run_app\n"
        f"for words in {WRONG!r}:\n"
        "    sys.argv = ['headprune', *words]\n"
        "    assert run_app() == 2, words\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_results_in_a_file_are_checked_without_a_model_library(run_here):
    result = result_of(0.8)
    (run_here / "r.json").write_text(result.to_json())
    script = (
        "import sys\nfrom headprune.cli.app import run_app\n"
        "for more in (['--update-baseline'], [], ['--format', 'junit'], ['--max-drop', '1%', '--json']):\n"
        "    sys.argv = ['headprune', 'check', 'r.json', '--baseline', 'b.json', *more]\n"
        "    assert run_app() == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_what_a_catalogue_names_is_shown_by_its_option(command_line):
    _code, out, _err = command_line("methods")
    words = " ".join(out.split())
    assert "--normalize standard" in words
    assert "`gradient`" in words


def test_what_is_said_where_a_command_is_stopped_names_options(capsys):
    stopped = KeyboardInterrupt()
    stopped.add_note("checkpoints are in x; `resume` goes on from the last")
    assert stopped_exit_code(stopped) == 130
    assert (
        capsys.readouterr().err
        == "\nstopped; checkpoints are in x; --resume goes on from the last\n"
    )
