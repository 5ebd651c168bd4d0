"""A reward server whose grader does what the response says: PORT QUEUE_LIMIT HEARTBEAT_S."""

import sys
from pathlib import Path

from nemo_simplerl.cli.reward_server import listen
from nemo_simplerl.reward.serving import server
from nemo_simplerl.reward.serving.pool import RewardPool

port, queue, heartbeat_s = sys.argv[1:]
server.HEARTBEAT_S = float(heartbeat_s)
command = (sys.executable, str(Path(__file__).with_name("misbehaving_worker.py")))
listener = listen("127.0.0.1", int(port))
with RewardPool(1, timeout_s=20.0, memory_limit_mb=512, command=command) as pool:
    server.run_server(
        pool,
        server.ServerLimits(request_bytes=1_000_000, items=100, queue=int(queue)),
        token=None,
        listener=listener,
        started=lambda: print(f"reward server on http://127.0.0.1:{listener.getsockname()[1]}", flush=True),
    )
