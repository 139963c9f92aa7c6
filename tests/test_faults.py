"""The campaign of faults: its quick part passes, and what it is made of sees what it should."""
