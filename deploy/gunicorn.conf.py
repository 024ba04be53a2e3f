"""For those who must start gunicorn themselves: `DEXML_BUNDLE=bundle gunicorn -c deploy/gunicorn.conf.py`.

`dexml serve` is the same gunicorn with the same settings, and says more. Every option of it is a variable here
(serve/environment.py). A reload (SIGHUP) opens the bundle in a second process while the first one drains: twice the memory.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when OpenMP is loaded; serve/cli.py says why

from dexml.errors import InputError
from serve.environment import options

try:
    globals().update(options())
except InputError as error:
    sys.exit(f"dexml: {error}")
