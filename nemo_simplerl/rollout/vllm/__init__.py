"""The vLLM engine: an adapter in the trainer's process, and the process of another environment that holds vLLM."""
