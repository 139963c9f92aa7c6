"""How much memory pruning and looking take."""
