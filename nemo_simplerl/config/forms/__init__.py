"""Folders that Megatron's users hold, as far as they describe a model: NeMo 2, Megatron-Bridge, Megatron-LM.

Which form a folder has, the settings of its model and where its weights lie. Nothing here imports torch.
"""
