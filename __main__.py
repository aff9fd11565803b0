"""``python -m tdpo`` and the ``tdpo`` command."""

from tdpo.core.cli import main

if __name__ == "__main__":
    main()
