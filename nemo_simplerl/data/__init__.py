"""Problems, prompts, the order in which they are sampled, and the tensors that training reads."""
