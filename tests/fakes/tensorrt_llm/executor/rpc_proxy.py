class GenerationExecutorRpcProxy:
    """Workers behind an RPC server, which nothing but requests reaches."""
