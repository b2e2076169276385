"""What every test process needs before torch is imported: one thread, no network, no settings of the developer's."""

import gc
import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # xdist workers share the cores
for _variable in ("HF_HUB_OFFLINE", "DO_NOT_TRACK", "DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")
for _variable in [name for name in os.environ if name.startswith("DIT_CACHE_")]:
    del os.environ[_variable]

import torch  # noqa: E402 - reads the variables above

torch.set_num_threads(1)
# Dynamo makes objects by the million, and they live: looking through them again and again took a tenth of the time.
gc.set_threshold(100_000)
