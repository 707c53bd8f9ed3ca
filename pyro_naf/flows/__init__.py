"""Flows: a conditioner and a transformer joined, a memory of the last evaluation, linear maps."""
