"""``python -m medmap.cli``, which launchers such as torchrun start."""

from medmap.cli.main import main

if __name__ == "__main__":  # processes that are started afresh import this file, too
    main()
