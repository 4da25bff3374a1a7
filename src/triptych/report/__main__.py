"""`python -m triptych.report DIR [DIR...]`."""

import sys

from triptych.report.cli import main

sys.exit(main())
