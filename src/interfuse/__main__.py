"""``python -m interfuse``."""

from interfuse.cli.main import main

main()
