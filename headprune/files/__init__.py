"""What all-or-nothing writing takes, so that nothing of anyone else's is replaced or removed."""
