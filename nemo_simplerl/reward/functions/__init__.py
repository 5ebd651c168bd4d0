"""A reward of the user's own: a Python function in the form of verl, TRL or OpenRLHF, in killable workers."""
