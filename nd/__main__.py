"""``python -m nd VERB ...`` is the same as ``nd VERB ...``."""

from nd.cli import main

if __name__ == "__main__":
    main()
