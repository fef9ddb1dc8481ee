"""``python -m medmap``."""

from medmap.cli.main import main

if __name__ == "__main__":  # processes that are started afresh import this file, too
    main()
