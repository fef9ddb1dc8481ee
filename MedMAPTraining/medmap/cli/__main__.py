"""``python -m medmap.cli``."""

from medmap.cli.main import main

main()
