"""The grader in the words of other trainers: verl, TRL and OpenRLHF. None of them is imported."""
