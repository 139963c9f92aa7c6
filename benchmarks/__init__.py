"""What headprune is measured by. Not part of the installed package; run from the root of a checkout.

    python -m benchmarks.speed          exact ablation beside two other ways to get the same numbers (docs/performance.md)
    python -m benchmarks.quality        pruned models beside the recipes of others (docs/quality.md)
    python -m benchmarks.quality.gates  which kinds of heads learned gates keep (docs/gates.md)
    python -m benchmarks.real_models    the whole chain on trained models
    python -m benchmarks.memory         pruning and looking with little memory
    python -m benchmarks.faults         what happens to files when things go wrong (docs/reliability.md)
    python -m benchmarks.gpu            speed on a GPU (docs/gpu.md; scripts/gpu-check runs the tests as well)
    python -m benchmarks.mutants        deliberate faults, and whether the contract test notices them

Each takes ``--help``, and each but the gates ``--quick``: the same code on tiny inputs, whose numbers mean nothing
and go into no page of docs/. The tests run it.
"""

import os

# Before anything imports the libraries that read them.
for _name, _value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)
