"""`python -m transformer2` is the command `transformer2`."""

import sys

from transformer2.cli import main

sys.exit(main())
