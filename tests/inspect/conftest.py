"""Make tests/tiny_models.py importable from here, however the tests are started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
