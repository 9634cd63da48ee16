"""`python -m caffeport`: the command line."""

from .cli import main

main(prog_name="caffeport")
