"""Files that hold weights and their configs: safetensors, .nemo archives, torch's distributed checkpoints."""
