"""`python -m edge`: the command `beltline`, for an environment whose scripts are not on the PATH."""

import sys

from edge.cli import main

sys.exit(main())
