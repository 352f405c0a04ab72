"""A further verb of the toy room."""

import click

VERBS = {"count": click.Command("count", callback=lambda: click.echo("three"), help="Count to three.")}
