"""`python -m med_assets.cli`."""

import sys

from med_assets.cli.main import main

sys.exit(main())
