"""``python -m evomerge``: the command."""

import sys

from evomerge.cli.main import main

sys.exit(main())
