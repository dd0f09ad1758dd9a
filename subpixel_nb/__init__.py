__version__ = "0.1.0"

import os
import sys

# Threads of OpenMP sleep while they wait for work, so that other processes can compute (lesson 4.1 measures it). OpenMP reads
# this when PyTorch is loaded; where PyTorch came first, set it before Python is started.
if 'torch' not in sys.modules:
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
