"""Measure what was gained, kept and lost.

Takes models, the sources they were made from (``against``) and a table with labels; makes a report: every score with its
number of items, its spread over seeds and its interval, and for every model and source, item by item, what was gained,
kept and lost. Use it after every fusion, and before believing one::

    report = interfuse.measure.classification([fused], [source_a, source_b], {"data": "reviews.parquet"}, out="report/")
    report.read()["notes"]
"""

from interfuse.core.rooms import door

TAKES = "models (+ the sources to compare with), labelled table (+ validation table)"
MAKES = "report"

__getattr__ = door(__name__)
