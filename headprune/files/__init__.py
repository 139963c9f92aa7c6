"""Writing that is all or nothing, where nothing of anyone else's is replaced or removed."""
