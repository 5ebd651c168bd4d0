"""From the text of an answer to a tree of numbers, symbols and functions."""
