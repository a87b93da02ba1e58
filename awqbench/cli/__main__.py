"""``python -m awqbench.cli``."""

from awqbench.cli import main

main()
