"""What becomes of files when things go wrong: kills, failing calls, damage, malformed and hostile input, two at once, signals."""
