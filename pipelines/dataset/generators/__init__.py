"""Rows that a program makes from a seed: a module a kind."""
