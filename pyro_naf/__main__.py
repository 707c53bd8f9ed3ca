"""``python -m pyro_naf`` is the command ``pyro-naf``."""

import sys

from pyro_naf.cli import main

if __name__ == "__main__":
    sys.exit(main())
