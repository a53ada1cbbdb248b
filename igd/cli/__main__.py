"""`python -m igd.cli`."""

from igd.cli import main

main()
