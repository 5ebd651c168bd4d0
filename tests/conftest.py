import sys
from pathlib import Path

import nemo_simplerl.parallel  # noqa: F401  before a test imports Megatron, which may need the stand-in for Triton

sys.path.insert(0, str(Path(__file__).parent))
