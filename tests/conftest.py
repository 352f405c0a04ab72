"""Makes ``from tests.oracles import ...`` work wherever pytest is started, and frees properties from time limits."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# The suite says the same of the same code on every run and on a busy machine: properties have no time limit and draw the same examples.
# ``pytest --hypothesis-profile soak`` draws new ones, two thousand of each property that sets no number.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=2000)
settings.load_profile("same")
