"""`python -m cpsd_lib` is the command `cpsd`."""

import sys

from cpsd_lib.cli import main

sys.exit(main())
