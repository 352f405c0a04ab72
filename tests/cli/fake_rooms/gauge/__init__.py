"""Reports on numbers."""

TAKES = "numbers"
MAKES = "a report"
DEFAULT = "look"
