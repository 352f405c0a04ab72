"""Errors: stable codes, places, suggestions."""

import pickle

import pytest

from interfuse.core.errors import CODES, InterfuseError, did_you_mean


def test_says_code_place_and_remedy() -> None:
    error = InterfuseError("input.nan", "a number is NaN", where="row 3", fix="Drop it.")
    assert str(error) == "input.nan: a number is NaN [row 3]\n  Drop it."
    assert error.exit_code == 3
    assert error.as_dict() == {"code": "input.nan", "what": "a number is NaN", "where": "row 3", "fix": "Drop it."}


def test_unknown_code_is_refused() -> None:
    with pytest.raises(KeyError):
        InterfuseError("input.whatever", "x")


def test_survives_a_trip_between_processes() -> None:
    error = InterfuseError("budget.spent", "too much", where="here", fix="less")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - what multiprocessing does with exceptions
    assert again.as_dict() == error.as_dict()


def test_exit_codes_are_the_documented_ones() -> None:
    assert {status for status, _ in CODES.values()} == {1, 2, 3, 4}


def test_suggestions() -> None:
    assert did_you_mean("tise", ["ties", "dare"]) == "Did you mean ties?"
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b."
    assert did_you_mean("zzz", [f"name{i}" for i in range(40)]) == ""
    assert did_you_mean("x", []) == ""
