"""Two models side by side, their shares of hidden units searched, and the winner written narrow: by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.export.zipped_model import ZIP_FILE
from evomerge.run.ledger import canonical_events
from evomerge.run.folder import RunFolder
