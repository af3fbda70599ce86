"""
Devices by name, with their memory, its speed, and their peak speed.

Peaks are from the makers' data sheets, dense, without sparsity; float32 is the rate of plain float32
arithmetic, which is what a float32 study gets unless it allows TF32. T4 and V100 have no units for
bfloat16, which is computed at the rate of float32 there. Memory is what the driver reports.
"""

from __future__ import annotations

from dataclasses import dataclass

CPU = "cpu"
FITS_SHARE = 0.8  # of the memory that is free, up to which a model is loaded whole
COLLECTIVE_TIMEOUT_MINUTES = 60  # that processes of a job wait for one another, if not set
COLLECTIVE_VARIABLE = "CAPGAP_COLLECTIVE_MINUTES"  # the variable that hands it to the jobs of a run
STREAMS_SHARE = 0.25  # of it, for what passes between the layers of a model that lies on disk


@dataclass(frozen=True)
class Device:
    """One accelerator."""

    memory_gib: float
    peak_tflops_bfloat16: float
    peak_tflops_float32: float
    memory_tb_per_s: float


DEVICES = {
    "t4-16gb": Device(15, 8.1, 8.1, 0.32),
    "v100-32gb": Device(32, 15.7, 15.7, 0.9),
    "l4-24gb": Device(22, 121, 30.3, 0.3),
    "rtx4090-24gb": Device(24, 165, 82.6, 1.008),
    "a10-24gb": Device(22, 125, 31.2, 0.6),
    "a100-40gb": Device(40, 312, 19.5, 1.555),
    "a100-80gb": Device(80, 312, 19.5, 2.039),
    "h100-80gb": Device(80, 989, 67, 3.35),
    "h200-141gb": Device(140, 989, 67, 4.8),
    "b200-180gb": Device(179, 2250, 80, 8),
}
DEVICE_NAMES = (CPU, *DEVICES)
