"""What work needs of the machine it runs on: files that are written whole or not at all, locks, what only this machine knows."""
