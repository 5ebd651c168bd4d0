"""What a run writes down: metrics, samples, the screen, TensorBoard and Weights & Biases."""
