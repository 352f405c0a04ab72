"""Numbers from numbers.

More words that help pages leave out.
"""

TAKES = "numbers"
MAKES = "a number"
