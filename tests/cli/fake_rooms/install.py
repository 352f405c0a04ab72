"""Two rooms that exist only for tests of the command line: ``toys`` makes numbers, ``gauge`` reports on them."""

from pathlib import Path

import interfuse
from interfuse.core import index

HERE = Path(__file__).parent
ROOMS = ("toys", "gauge")


def fake_entries() -> dict[str, index.Entry]:
    """The entries of the fake rooms, found as the index finds real ones."""
    found = {}
    for room in ROOMS:
        for card in sorted((HERE / room).glob("*.md")):
            slug = card.stem.replace("_", "-")
            found[f"{room}/{slug}"] = index.Entry(f"{room}/{slug}", "method", card, f"interfuse.{room}.{card.stem}")
    return found


def open_path() -> None:
    """Lets ``interfuse.toys`` be imported from here."""
    if str(HERE) not in interfuse.__path__:
        interfuse.__path__.append(str(HERE))


def install() -> None:
    """Puts the fake rooms in place of the real ones, for the rest of the process."""
    open_path()
    index.rooms = lambda: ROOMS  # type: ignore[assignment]
    index.entries = fake_entries  # type: ignore[assignment]


if __name__ == "__main__":
    from interfuse.cli.main import main

    install()
    main()
