"""How fast is the way the original fork went: pickle, torch.save and copying multipart messages?"""

from __future__ import annotations

import io
import pickle  # noqa: TID251  what is measured here, between two processes of our own
from typing import Any

import torch

from zmqpp.bench.payload import Tensors
from zmqpp.bench.peers.pyzmq_frames import PyzmqFrames


class Pickled(PyzmqFrames):
    """One multipart message a dict: pickled metadata, then each tensor as a file of torch.save."""

    def __init__(self) -> None:
        super().__init__("tcp")

    def send(self, tensors: Tensors) -> None:
        metadata = [
            (name, tuple(tensor.shape), tensor.dtype, str(tensor.device)) for name, tensor in tensors.items()
        ]
        parts: list[Any] = [pickle.dumps(metadata)]
        for tensor in tensors.values():
            file = io.BytesIO()
            torch.save(tensor.cpu(), file)
            parts.append(file.getvalue())
        self._push.send_multipart(parts)

    def recv(self) -> Tensors:
        assert self._place is not None
        metadata, *files = self._pull.recv_multipart()
        described = pickle.loads(metadata)  # noqa: S301  our own process sent it
        return {
            name: torch.load(io.BytesIO(file)).to(self._place.device)
            for (name, *_), file in zip(described, files, strict=True)
        }
