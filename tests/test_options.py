"""A command has the options that act in it: every switch can be taken back, and what would do nothing is refused."""

import pytest
import typer

from headprune.cli import app as application
from headprune.cli.options import TALK
from headprune.config import SECTION_OF

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
