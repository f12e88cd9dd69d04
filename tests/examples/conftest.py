"""Makes ``examples/demo/recipe`` importable as ``recipe``; it is run from its folder and never installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "demo"))
