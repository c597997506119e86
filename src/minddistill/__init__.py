"""MindDistill: distil large BERT-family text classifiers into small, fast ones on MindSpore."""

import os

# MindSpore's and our CPU kernels share cores: one's idle threads must not spin while the other works. OpenMP reads this
# when MindSpore loads it. Measured: half of the matrix products' time.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
