"""Parses the text of an answer into a tree of numbers, symbols and functions."""
