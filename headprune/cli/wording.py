"""What options are called, and said to do, by commands where they mean something of their own."""

HELP = {
    (
        "score",
        "methods",
    ): "How heads are scored; several share what passes they can. (default: unique)",
    ("score", "keep"): "Share of the heads that would be kept, for --steps.",
    ("score", "heads"): "How many heads would be kept, for --steps.",
    (
        "score",
        "reconstruct",
    ): "How what is left will be reconstructed: it is before it is scored again, with --steps. "
    "(default: best)",
    (
        "score",
        "run_dir",
    ): "Where scores.json is written, and scores.METHOD.json of further methods. "
    "(default: headprune-runs/NNN-METHOD)",
    ("analyze", "num_samples"): "Rows to look at, at most.",
    ("analyze", "run_dir"): "Where roles.json is written. (default: headprune-runs/NNN-roles)",
    ("view", "scores"): "Importance to show. (default: scores.json beside a pruned model)",
    ("view", "out"): "The page. (default: headprune-runs/NNN-view/view.html)",
    (
        "prune",
        "out",
    ): "Where the model goes. (default: headprune-models/NAME-keep-KEEP, NAME-heads-N, ...)",
    (
        "sweep",
        "methods",
    ): "How heads are scored, side by side. (default: gradient,magnitude,random)",
    (
        "sweep",
        "max_drop",
    ): "Mark how many heads can be removed with the metric surely no worse than this: in its own units "
    "(0.01), or a share (1%).",
    ("sweep", "out"): "Where curves and pictures go. (default: headprune-runs/NNN-sweep)",
    ("heal", "model"): "What headprune prune saved.",
    ("heal", "out"): "Where the healed model goes. (default: DIR-healed)",
    ("heal", "num_samples"): "Rows to train on. (default: as when it was pruned; 1024)",
    (
        "heal",
        "run_dir",
    ): "Where checkpoints are kept. (default: headprune-runs/heal-..., until the model is saved)",
    ("check", "model"): "A model, which is evaluated, or results of `prune` or `eval --json`.",
    ("export", "overwrite"): "Replace a GGUF file of this name.",
    ("compare", "run_dir"): "Where compare.json is written. (default: headprune-runs/NNN-compare)",
}
"""What an option does, where that is something of its own by one command."""

METAVARS = {
    ("heal", "model"): "DIR",
    ("check", "model"): "MODEL|RESULTS.json",
    ("view", "out"): "FILE",
}
"""What stands for its value."""
