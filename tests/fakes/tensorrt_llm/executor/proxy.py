class GenerationExecutorProxy:
    """The default executor: workers under MPI, which nothing but requests reaches."""
