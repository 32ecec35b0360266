"""``python -m odn`` is the command ``odn``."""

from odn.cli import main

main()
