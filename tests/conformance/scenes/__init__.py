"""One module per room whose scene is not in ``fixtures.py``; each marks its function with ``@room(NAME)``."""
