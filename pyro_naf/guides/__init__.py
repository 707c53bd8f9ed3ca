"""Guides with a flow inside, their parts, and everything that reaches into Pyro."""
