"""`make bench`: the benchmarks that need no trained run."""

import sys

from benchmarks import unet_step

if __name__ == "__main__":
    unet_step.main(sys.argv[1:])
