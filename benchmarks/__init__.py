"""Measurements: each module is a command, its numbers stand in docs/."""
