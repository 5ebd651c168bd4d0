"""The child process: executes one step of each case that a request names, on pretended GPUs.

`python -m nemo_simplerl.dry.child REQUEST RESULT`, both files of JSON: see `execute`, which writes and reads them.
"""

import json
import os
import sys
from pathlib import Path

from nemo_simplerl.dry import shim


def main(request_file: str, result_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # there is nothing to compile for
    shim.load(Path(request["library"]))
    from nemo_simplerl.dry.steps import run_cases

    run_cases(request["cases"], Path(result_file))


if __name__ == "__main__":
    main(*sys.argv[1:])
