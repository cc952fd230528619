"""The command ``aggregathor``: each sub-command is a module."""
