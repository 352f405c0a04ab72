"""The command line: one command, its verbs are the rooms and a few helpers that only read."""
