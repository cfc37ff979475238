"""How fast is Gloo, which vLLM's own pipeline uses between CPU stages?"""

from __future__ import annotations

import os

from zmqpp.bench.peers.world import World
from zmqpp.bench.transport import Place, Unavailable


class Gloo(World):
    """Between CPU tensors."""

    def open(self, place: Place) -> str:
        import torch.distributed as dist

        if not dist.is_gloo_available():
            raise Unavailable("this torch was built without Gloo")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.join("gloo", place)
        return ""
