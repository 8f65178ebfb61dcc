"""Tasks, methods, aids and families in all their combinations, of which the test command runs some (`tests.grids`).

python -m tests.benchmarks.grids [pytest's own words, like -k invariants]
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.grids import WHOLE

ROOT = Path(__file__).parent.parent.parent
FILES = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "tests.grids" in path.read_text(encoding="utf-8")]

if __name__ == "__main__":
    command = [sys.executable, "-m", "pytest", "-n", "2", *map(str, FILES), *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, env={**os.environ, WHOLE: "1"}, check=False).returncode)
