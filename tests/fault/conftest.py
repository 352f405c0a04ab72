"""The toy rooms, for tests of the spine."""

from tests.toy_rooms import toy as toy
