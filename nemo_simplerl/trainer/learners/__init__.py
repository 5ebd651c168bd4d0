"""Actor and critic: forward passes, mini-batches, updates, and where optimizer state lives meanwhile."""
