"""The PPO trainer: roles that learn, the page that reads like the paper, and what keeps a run's books."""
