"""The only place where stages meet: settings in, values out; one file a command.

Nothing is imported here, so that a command loads what it needs.
"""
