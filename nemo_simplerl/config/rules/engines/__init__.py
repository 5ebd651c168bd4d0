"""Rules of the rollout engines that have settings of their own, a module each."""
