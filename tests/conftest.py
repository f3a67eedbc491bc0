"""What all tests share: single-threaded ranks, loopback only, and no reach to a hub."""

import os

for name, value in {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "POLYMATH_DEBUG": "0",
}.items():
    os.environ.setdefault(name, value)
