"""python -m xhat, for torchrun -m xhat -- train ..."""

import sys

from xhat.cli import main

sys.exit(main())
