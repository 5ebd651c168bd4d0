"""What each rollout engine takes of a GPU: one module an engine, with the name that `rollout.engine` has."""
