import sys

from hpk import cli

sys.exit(cli.main())
