"""Let a pruned model learn from the one it came from: our losses, transformers' Trainer."""
