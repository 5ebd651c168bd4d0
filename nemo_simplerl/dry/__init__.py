"""The dry run: a run's real step on pretended GPUs, in a child process. `execute` is its face, `child` what runs."""
