"""Every kernel of ours once in every way, for compute-sanitizer; what they make is compared with the CPU's, bit by bit.

compute-sanitizer --tool memcheck python tests/gpu/kernels.py [cpu|cuda:N]

PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives each tensor memory of its own size, so that a byte too far is noticed.
"""

from __future__ import annotations

import itertools
import sys

import torch

from zmqpp import _engine

NUMBERS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMATS = ("fp8", "int8")
RUN = getattr(_engine, "PACK_RUN", 128)
SHAPES = [(rows, columns) for rows in (1, 3, 33) for columns in (1, 7, RUN - 1, RUN, RUN + 1, 300, 4096)]


def main() -> int:
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda:0")
    done = 0
    for number, form, shape in itertools.product(NUMBERS, FORMATS, SHAPES):
        if not is_same(number, form, shape, device):
            print(f"kernels: {form} of {number} {shape} differs from the CPU's", file=sys.stderr)
            return 1
        done += 1
    print(f"kernels: {done} tensors packed and unpacked, all as on the CPU")
    return 0


def is_same(number: str, form: str, shape: tuple[int, int], device: torch.device) -> bool:
    """Packed and unpacked on both, from the same numbers, some of them at the edges."""
    rows, columns = shape
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(rows * 10_007 + columns)) * 100
    numbers.view(-1)[:: max(1, columns // 3)] = 0.0
    numbers.view(-1)[-1] = float("inf") if rows == 3 else 1e-30
    here, there = numbers.to(NUMBERS[number]), numbers.to(device, NUMBERS[number])
    codes, scales = pack(here, number, form)
    codes_there, scales_there = pack(there, number, form)
    back = unpack(codes, scales, number, form, shape)
    back_there = unpack(codes_there, scales_there, number, form, shape)
    pairs = ((codes, codes_there), (scales, scales_there), (back, back_there))
    return all(torch.equal(bytes_of(one), bytes_of(other)) for one, other in pairs)


def pack(numbers: torch.Tensor, number: str, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = numbers.shape
    codes = torch.empty(rows * columns, dtype=torch.uint8, device=numbers.device)
    scales = torch.empty(rows * -(-columns // RUN), dtype=torch.float32, device=numbers.device)
    act = _engine.pack_on_device if numbers.is_cuda else _engine.pack
    act(number, form, rows, columns, *addresses(numbers, codes, scales), *place(numbers.device))
    return codes, scales


def unpack(
    codes: torch.Tensor, scales: torch.Tensor, number: str, form: str, shape: tuple[int, int]
) -> torch.Tensor:
    numbers = torch.empty(shape, dtype=NUMBERS[number], device=codes.device)
    act = _engine.unpack_on_device if codes.is_cuda else _engine.unpack
    act(number, form, *shape, *addresses(numbers, codes, scales), *place(codes.device))
    return numbers


def addresses(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def place(device: torch.device) -> tuple[int, ...]:
    """A device's number and the stream that does the work; nothing for the CPU."""
    if device.type != "cuda":
        return ()
    return device.index, torch.cuda.current_stream(device).cuda_stream


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """NaN differs from itself; its bytes do not."""
    return tensor.cpu().contiguous().view(-1).view(torch.uint8)


if __name__ == "__main__":
    sys.exit(main())
