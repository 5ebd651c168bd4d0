"""The PPO trainer: the loop, the roles it calls, and what saves, logs and guards a run."""
