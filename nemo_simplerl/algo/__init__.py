"""Advantages, KL, losses and whitening: functions of tensors that import torch and nothing else."""
