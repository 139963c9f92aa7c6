"""Cut heads, and reconstruct what is left. Beside training, the only place where weights change."""
