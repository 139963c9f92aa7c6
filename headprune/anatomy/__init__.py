"""Where the heads of a model are: asked of a tiny random clone of its class, then found in the model itself."""
