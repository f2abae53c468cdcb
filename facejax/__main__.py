"""`python -m facejax` is the `facejax` command."""

import sys

from facejax.cli import main

sys.exit(main())
