"""From scores, a budget and constraints to a plan."""
