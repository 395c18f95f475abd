"""`python -m flows.cli` is `ptp`."""

from flows.cli import main

main()
