"""`python -m lab`: the command line of the lab."""

from lab.cli import main

main()
