"""`python -m tests.storm`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where tests import helpers from

from storm.storm import main

if __name__ == "__main__":
    main()
