"""A program as the parser's, which dies of the second graph that it is given."""

import json
import os
import signal
import sys
from pathlib import Path


def main(answers: str, runtime: str, *graphs: str) -> None:
    for graph in graphs:
        if "second" in Path(graph).name:
            os.kill(os.getpid(), signal.SIGSEGV)
        with Path(answers).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([{"level": "error", "what": f"seen by {runtime}", "nodes": [graph]}]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
