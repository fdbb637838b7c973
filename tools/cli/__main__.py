"""`python -m tools.cli`."""

from . import main

main(prog_name="redundancy")
