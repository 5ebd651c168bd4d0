"""The TensorRT-LLM engine, its Ray workers, and its assumptions about TensorRT-LLM's sources."""
