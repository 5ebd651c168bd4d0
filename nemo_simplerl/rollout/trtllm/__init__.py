"""The TensorRT-LLM engine, its Ray workers, and the contract it holds TensorRT-LLM's sources to."""
