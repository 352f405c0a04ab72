"""Makes ``from tests.oracles import ...`` work wherever pytest is started, and frees properties from time limits."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# a busy machine must not fail a property: how fast things are is measured elsewhere
settings.register_profile("untimed", deadline=None)
settings.register_profile("soak", deadline=None, max_examples=2000)
settings.load_profile("untimed")
