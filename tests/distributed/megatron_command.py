"""`xylem …` where Megatron-core is made to run on the CPU; run as a module."""

import sys

from xylem.train.__main__ import main

from .. import megatron_on_cpu

if __name__ == "__main__":
    megatron_on_cpu.install()
    sys.exit(main())
