"""``python -m autocomp``."""

from autocomp.cli.main import main

if __name__ == "__main__":
    main()
