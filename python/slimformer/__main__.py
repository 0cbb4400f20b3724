"""``python -m slimformer`` is the command ``slimformer``."""

from slimformer.cli.main import main

if __name__ == "__main__":
    main()
