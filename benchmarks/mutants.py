"""Deliberate faults, and whether tests/contract/test_every_type.py notices them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks import command
from benchmarks.command import ROOT


class Fault(NamedTuple):
    """One place where the code is made wrong, and model types that ought to notice."""

    name: str
    file: str
    right: str
    wrong: str
    types: str


CUT, SITES = "surgery/cut.py", "anatomy/sites.py"
TRAVELS, OWNERSHIP = "surgery/modeling_headprune.py", "anatomy/ownership.py"

FAULTS = (
    Fault(
        "rows in the wrong order",
        CUT,
        "torch.tensor(kept,",
        "torch.tensor(kept[:: -1 if item.dim == 0 else 1],",
        "bert",
    ),
    Fault(
        "rows of the head after the one that stays",
        SITES,
        "indices.extend(range(position, position + run.length))",
        "indices.extend(range(position + run.length, position + 2 * run.length))",
        "bert",
    ),
    Fault(
        "a bias is left whole",
        CUT,
        "if len(kept) != tensor.shape[item.dim]:",
        'if len(kept) != tensor.shape[item.dim] and not item.parameter.endswith("bias"):',
        "bert",
    ),
    Fault(
        "masks are off by one head",
        "masking.py",
        "by_row = by_row.to(z.dtype)",
        "by_row = by_row.to(z.dtype).roll(1, -1)",
        "bert",
    ),
    Fault(
        "a key/value group too many stays",
        SITES,
        "for owner in run.owners)",
        "for owner in (*run.owners, *(o + 1 for o in run.owners)))",
        "llama",
    ),
    Fault(
        "bias tables and sinks are not cut",
        SITES,
        'if self.execution_with(self.heads) != "zero_padded":\n            return self.slices',
        "if False:\n            return self.slices",
        "swin",
    ),
    Fault(
        "an integer is forgotten",
        "anatomy/exceptions.py",
        '    "num_key_value_groups": "group_size",\n',
        "",
        "llama",
    ),
    Fault(
        "the group size is wrong",
        SITES,
        "return max(1, heads // max(1, key_value_heads))",
        "return max(1, heads)",
        "llama",
    ),
    Fault(
        "a width is wrong",
        SITES,
        "return heads * self.head_dim",
        "return self.num_heads * self.head_dim",
        "gpt2",
    ),
    Fault(
        "the output projection reads other columns",
        TRAVELS,
        "args[0].index_select(-1, self.index(args[0].device))",
        "args[0].index_select(-1, self.index(args[0].device).flip(0))",
        "bloom",
    ),
    Fault(
        "rows are spread to other places",
        TRAVELS,
        "full.index_copy(-1, self.index(output.device), output)",
        "full.index_copy(-1, self.index(output.device).flip(0), output)",
        "bloom",
    ),
    Fault(
        "a reload doesn't spread",
        TRAVELS,
        'for path, spread in site["spread"].items():',
        "for path, spread in ():",
        "bloom",
    ),
    Fault(
        "a reload forgets integers",
        TRAVELS,
        "for name, value in values.items():",
        "for name, value in ():",
        "llama",
    ),
    Fault(
        "a reload forgets how weights are renamed",
        TRAVELS,
        "if mapping is not None:",
        "if False:",
        "vit",
    ),
    Fault(
        "what a module reads from its config stays",
        TRAVELS,
        "    module.config = view\n",
        "",
        "phi3",
    ),
    Fault(
        "padding is not silenced",
        CUT,
        "new.index_fill_(item.dim, torch.tensor(dead, device=tensor.device), 0)",
        "pass",
        "llama",
    ),
    Fault(
        "groups are padded to the smallest",
        SITES,
        "size = max((len(members) for members in groups.values()), default=0)",
        "size = min((len(members) for members in groups.values()), default=0)",
        "llama",
    ),
    Fault(
        "gates of windows are repeated the wrong way",
        "masking.py",
        "gates.repeat_interleave(length // gates.shape[0], dim=0)",
        "gates.repeat(length // gates.shape[0], 1)",
        "swin",
    ),
    Fault(
        "the output projection's columns belong to other heads",
        OWNERSHIP,
        "Run((head,), candidate.head_dim) for head in range(candidate.num_heads)",
        "Run((head,), candidate.head_dim) for head in reversed(range(candidate.num_heads))",
        "bert",
    ),
    Fault(
        "every layer is taken for the first",
        "anatomy/locate.py",
        "        parts[index] = new\n",
        "        parts[index] = old\n",
        "bert-deep",
    ),
    Fault(
        "a layer without heads runs as if it had some",
        "inspection.py",
        "if _difference(probed, settled, _first_of_all) <= _TOLERANCE:",
        "if True:",
        "gpt2",
    ),
    Fault(
        "what was removed is not noted",
        CUT,
        '"removed": [str(head) for head in sorted(removed)],',
        '"removed": [],',
        "bert",
    ),
)


def survives(fault: Fault) -> str:
    """Return why a fault went unnoticed; empty where it was caught."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("headprune", "tests", "docs"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copyfile(ROOT / name, place / name)
        path = place / "headprune" / fault.file
        text = path.read_text(encoding="utf-8")
        if text.count(fault.right) != 1:
            return f"its place is found {text.count(fault.right)} times in {fault.file}"
        path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
        tests = [
            f"tests/contract/test_every_type.py::test_the_contract_holds[{name}]"
            for name in fault.types.split()
        ]
        child = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", ""),
                *tests,
            ],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            check=False,
        )
    lines = child.stdout.strip().splitlines() or [child.stderr.strip()[-200:]]
    said = {0: "survived", 1: "caught"}.get(child.returncode, "no result")
    print(f"{said:9} {fault.name}: {lines[-1]}", flush=True)
    if child.returncode == 1:
        return ""
    return "the tests passed" if child.returncode == 0 else f"pytest ended with {child.returncode}"


def main(words: Sequence[str] | None = None) -> int:
    """Try every fault, after the tests without any; return 1 where one survives."""
    parser = command.parser("mutants", __doc__, quick="the first of the faults")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="only faults with this in their name"
    )
    asked = command.read(parser, words)
    wanted = [fault for fault in FAULTS if any(word in fault.name for word in asked.names or [""])]
    wanted = wanted[:1] if asked.quick else wanted
    if not wanted:
        parser.error(f"no fault has {' or '.join(asked.names)} in its name")
    types = " ".join(sorted({name for fault in wanted for name in fault.types.split()}))
    same = '"""Slice the Q/K/V/O weights'
    problem = survives(Fault("no fault at all", CUT, same, same, types))
    if problem != "the tests passed":
        print(f"without any fault: {problem or 'the tests fail'}", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(wanted, pool.map(survives, wanted), strict=True))
    caught = sum(not reason for reason in found.values())
    print(f"{caught} of {len(found)} faults caught")
    for fault, reason in found.items():
        if reason:
            print(f"NOT CAUGHT {fault.name}: {reason}")
    return int(caught != len(found))


if __name__ == "__main__":
    sys.exit(main())
