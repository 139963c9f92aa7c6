"""What a person or a CI system reads: writers over the same values."""
