"""`make demo`: the main job on the embedded phantom: the two commands that a user would type, one after the other.

    python scripts/demo.py [out]      default runs/demo; goes on with an interrupted demo
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent


def main(out: str) -> int:
    """Design, check, report; prints the report's path. Each in a process of its own, so that the first one's memory is free."""
    started = time.perf_counter()
    for command in (["optimize.py", "experiment=demo", f"out={out}", "resume=true"], ["verify.py", f"run={out}"]):
        print(f"== python scripts/{' '.join(command)}", flush=True)
        child = subprocess.Popen([sys.executable, str(SCRIPTS / command[0]), *command[1:]])
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:  # the child has it too, and leaves a folder that resumes
                continue
        if code:
            return code
    print(f"\ndone in {(time.perf_counter() - started) / 60:.1f} min\nreport: {(Path(out) / 'report.html').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
