"""``python -m sqla_datastore.cli``."""

import sys

from sqla_datastore.cli.main import main

sys.exit(main())
