"""File formats below the forms of models: safetensors, tar, torch.save, zarr, distributed checkpoints, NeMo's yaml."""
