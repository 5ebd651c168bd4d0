"""PPO on math problems with a rule-based reward, for Megatron-core models."""
