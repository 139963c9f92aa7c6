"""Imports run down the list of the house only; heavy libraries are imported late; dangerous ones never; files stay small."""

import ast
import subprocess
import sys
import time
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import beartype.roar
import jaxtyping
import pytest
import torch

PACKAGE = Path(__file__).parent.parent / "headprune"
ORDER = [
    "errors",
    "late",
    "runtime",
    "untrusted",
    "artefact",
    "heads",
    "fate",
    "plans",
    "demo",
    "config",
    "placement",
    "anatomy",
    "wrapped",
    "batch",
    "masking",
    "passes",
    "replay",
    "attention",
    "tasks",
    "evaluation",
    "footprint",
    "scoring",
    "analysis",
    "surgery",
    "planning",
    "inspection",
    "models",
    "verify",
    "distillation",
    "export",
    "results",
    "runs",
    "gate",
    "report",
    "workflows",
    "api",
    "cli",
]
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRANCES = ("__init__", "__main__")
STANDALONE = ("modeling_headprune.py", "fresh_process.py")


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Yield (module, line) of everything a file imports of headprune, late imports too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"headprune.{alias.name}" for alias in node.names]
                if node.module == "headprune"
                else [node.module]
            )
        for name in names:
            if name.split(".")[0] == "headprune":
                yield name, node.lineno


def modules():
    """Return the names of all modules, and what each imports of the others, late imports too, those for types alone not."""
    names = {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        )
        for path in FILES
    }
    known = set(names.values())
    imported = {name: set() for name in known}
    for path, name in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
                within = {f"{node.module}.{alias.name}" for alias in node.names} & known
                imported[name] |= within or ({node.module} & known)
            elif isinstance(node, ast.Import):
                imported[name] |= {alias.name for alias in node.names} & known
    return imported


def circle(imported):
    """Return modules that import each other in a circle, or nothing."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}), "a circle is seen"
    imported = {name: others - {name} for name, others in modules().items()}
    assert sum(map(len, imported.values())) > len(FILES), "imports are seen"
    assert circle(imported) == []


def test_the_package_grows_no_larger():
    """What is added is paid for by what is taken away, but in the room that shows what heads do."""
    others = [path for path in FILES if room(path) != "analysis"]
    assert len(others) <= 194
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in others) <= 34_840


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == {*ORDER, *ENTRANCES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_the_list_only(path):
    here = room(path)
    if here in ENTRANCES:
        return
    for name, line in imports(path):
        if name.endswith(".catalogue"):
            continue  # they import nothing heavy, and every room looks things up in them
        target = name.split(".")[1]
        assert target in ORDER, f"{path}:{line} imports {name}"
        assert ORDER.index(target) <= ORDER.index(here), f"{path}:{line}: {here} imports {target}"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("catalogue.py")), ids=lambda path: path.parent.name
)
def test_catalogues_import_next_to_nothing(path):
    assert {name for name, _line in imports(path)} <= {"headprune.errors", "headprune.late"}


@pytest.mark.parametrize("name", STANDALONE)
def test_the_files_that_travel_import_nothing_of_ours(name):
    assert not list(imports(next(PACKAGE.rglob(name))))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            where = f"{path}:{node.lineno} {node.name}"
            assert node.end_lineno - node.lineno + 1 <= 60, where
            arguments = [one.arg for one in (*node.args.args, *node.args.kwonlyargs)]
            assert len([name for name in arguments if name not in ("self", "cls")]) <= 7, where


def test_directories_are_replaced_in_one_place_alone():
    """It asks whether what lies there is ours; the demo's has a name of its own and is never asked to replace anything."""
    callers = {
        path.relative_to(PACKAGE).as_posix(): [keyword.arg for keyword in node.keywords]
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "staged_directory"
    }
    assert callers == {
        "demo.py": ["keep_aside"],
        "models/manifest.py": ["may_replace"],
    }


def test_nothing_dangerous_is_used():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = f"{node.value.id}.{node.attr}"
                if (path.name, used) == ("legacy.py", "torch.load"):
                    continue  # after an explicit yes, and with weights_only=True
                assert used not in (
                    "torch.load",
                    "torch.save",
                    "yaml.load",
                    "pickle.load",
                    "os.system",
                )
            if isinstance(node, ast.keyword):
                assert node.arg != "ignore_mismatched_sizes"


COMMANDS = [
    "score",
    "prune",
    "sweep",
    "eval",
    "heal",
    "check",
    "inspect",
    "run",
    "export",
    "report",
]
HEAVY = ("torch", "transformers", "datasets", "evaluate", "numpy", "scipy", "matplotlib")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command):
    script = (
        "import sys\nfrom headprune.cli import main\n"
        f"sys.argv = ['headprune', *{[command] if command else []!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_help_is_there_at_once():
    """0.4 s on a quiet machine; in units of starting Python itself, so that a busy one doesn't matter."""

    def seconds(*words):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    bare, shown = [], []
    for _ in range(5):  # in turns, so that both meet the same machine
        bare.append(seconds("-c", "import typer, rich"))
        shown.append(seconds("-m", "headprune", "prune", "--help"))
    assert min(shown) < 4 * min(bare) + 0.1


def test_importing_headprune_imports_no_torch():
    script = "import sys, headprune; assert 'torch' not in sys.modules; headprune.prune; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_shapes_and_types_that_signatures_tell_are_checked_in_tests():
    from headprune.batch import as_batches
    from headprune.scoring.derivatives import _place_in_row

    row = torch.tensor([0, 0, 1])
    assert _place_in_row(row, torch.tensor([1, 1, 1]), rows=2).tolist() == [0, 1, 0]
    with pytest.raises(jaxtyping.TypeCheckError):
        _place_in_row(row, torch.tensor([1, 1]), rows=2)
    with pytest.raises(jaxtyping.TypeCheckError):
        _place_in_row(row.float(), torch.tensor([1, 1, 1]), rows=2)
    with pytest.raises(beartype.roar.BeartypeCallHintParamViolation):
        as_batches(1)
