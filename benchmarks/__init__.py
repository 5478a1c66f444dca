"""Scripts that run as `python benchmarks/NAME.py` and as `python -m benchmarks.NAME`: both find what they share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
