"""The toy rooms, for tests of the spine."""

from tests.toy_rooms import quick as quick
from tests.toy_rooms import toy as toy
