"""This rank's GPTModel: its construction, its layers and heads, its passes in Megatron's pipeline schedules."""
