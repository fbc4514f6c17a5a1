import sys

from bandtok_jax.cli import main

sys.exit(main())
