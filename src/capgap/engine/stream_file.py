"""What passes between the layers of a model, in a file that has no name and is gone with the process."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch

FLOAT = 4  # bytes


class StreamFile:
    """Tensors of known shapes in an unnamed file of a folder, replaced one by one."""

    def __init__(self, shapes: list[tuple[int, ...]], folder: Path, device: torch.device):
        self.shapes, self.device = shapes, device
        sizes = [FLOAT * math.prod(shape) for shape in shapes]
        self.places = [sum(sizes[:i]) for i in range(len(sizes))]
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - as long as this

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> torch.Tensor:
        read = np.empty(self.shapes[index], dtype=np.float32)
        self.file.seek(self.places[index])
        view = memoryview(read).cast("B")
        while view:
            view = view[self.file.readinto(view) :]
        return torch.from_numpy(read).to(self.device)

    def __setitem__(self, index: int, stream: torch.Tensor) -> None:
        written = stream.detach().to("cpu", torch.float32).contiguous().numpy()
        assert written.shape == self.shapes[index], (written.shape, self.shapes[index])
        self.file.seek(self.places[index])
        view = memoryview(written).cast("B")
        while view:
            view = view[self.file.write(view) :]
