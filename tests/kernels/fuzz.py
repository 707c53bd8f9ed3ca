"""Random calls of the C++ loops, against the plain formula in float64.

    python -m tests.kernels.fuzz --calls 10000 [--seed 0] [--isa sse2,avx2,avx512]

Each instruction set is compiled with the address and undefined-behaviour sanitizers and called in a
process of its own, which a report ends. Tensors have odd strides, are expanded, negated, misaligned
or empty, and hold numbers to 1e20, NaN and infinities; calls use one to five threads.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_naf.kernels import compiled, library, prebuilt
from pyro_naf.transformers import DeepDenseSigmoidal, DeepSigmoidal, Scaled

#: Compiler flags of an instruction set, and the processor's flags that it needs.
ISAS: dict[str, tuple[str, set[str]]] = {
    "sse2": ("-msse2", set()),
    "avx2": ("-mavx2 -mfma", {"avx2", "fma"}),
    "avx512": ("-mavx512f -mavx512dq -mfma", {"avx512f", "avx512dq"}),
}

#: Of so many calls one is checked by the plain formula.
CHECKED_EVERY = 10

FLAGS = (
    "-std=c++17 -O1 -g1 -fopenmp -fPIC -shared -ffp-contract=fast "
    "-fsanitize=address,undefined -fno-sanitize-recover=all"
)


def supported() -> list[str]:
    """The instruction sets that this processor has; none without a compiler with sanitizers."""
    if shutil.which("g++") is None or not Path("/proc/cpuinfo").exists() or not _preloaded():
        return []
    have = set(Path("/proc/cpuinfo").read_text().split())
    return [isa for isa, (_, needed) in ISAS.items() if "sse2" in have and needed <= have]


def _preloaded() -> list[str]:
    """The sanitizers' libraries, which a process must load before all others."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    return found if all(os.path.isabs(path) for path in found) else []


def build(isa: str, folder: str | Path) -> Path:
    """The loops as a library for an instruction set, with sanitizers."""
    built = Path(folder) / f"{isa}.so"
    flags = [*FLAGS.split(), *ISAS[isa][0].split()]
    subprocess.run(["g++", *flags, str(prebuilt.SOURCE), "-o", str(built)], check=True)
    return built


def run(built: Path, calls: int, seed: int) -> subprocess.CompletedProcess[str]:
    """Run a process that calls a library ``calls`` times; it exits with 0 if all were right."""
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(_preloaded()),
        # Python does not free what it keeps until its end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(compiled.__file__).parents[2]),
    }
    command = [sys.executable, __file__, "--library", built, "--calls", calls, "--seed", seed]
    return subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True
    )


# --------------------------------------------------------------------------- within that process


def load(path: str) -> Any:
    """The library's entry points, as :func:`library.library` has them."""
    return library.with_signatures(ctypes.CDLL(path))


def transformer(rng: random.Random) -> DeepSigmoidal | DeepDenseSigmoidal | Scaled:
    """DSF, or DDSF of one to four layers, affine or not."""
    units, layers = rng.choice([1, 2, 3, 5, 8]), rng.randrange(5)
    made = DeepDenseSigmoidal(units, layers) if layers else DeepSigmoidal(units)
    return Scaled(made) if rng.random() < 0.5 else made


def odd(tensor: Tensor, rng: random.Random) -> Tensor:
    """The tensor's numbers in another memory layout."""
    way = rng.randrange(6)
    if way == 1:  # every third element
        return torch.stack([tensor, tensor, tensor], -1).flatten(-2)[..., ::3]
    if way == 2:  # the first axis innermost
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if way == 3:  # the sign beside the memory
        return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    if way == 4 and tensor.numel():  # at an odd address
        size = tensor.element_size()
        room = bytearray(tensor.numel() * size + 8)
        moved = torch.frombuffer(
            room, dtype=tensor.dtype, count=tensor.numel(), offset=rng.choice([1, 4])
        )
        return moved.view(tensor.shape).copy_(tensor)
    if way == 5:  # one row for all
        return tensor[:1].expand_as(tensor)
    return tensor


def numbers(shape: tuple[int, ...], dtype: torch.dtype, rng: random.Random) -> Tensor:
    """Ordinary numbers, or some of any size."""
    x = torch.randn(shape, dtype=dtype)
    kind = rng.randrange(4)
    if kind == 1:
        x *= 10 ** (20 * torch.rand(shape, dtype=dtype))
    if kind == 2:
        x *= 30
    if kind == 3 and x.numel():
        x.view(-1)[rng.randrange(x.numel())] = rng.choice([torch.nan, torch.inf, -torch.inf, 0.0])
    return x


def call(rng: random.Random, is_checked: bool) -> None:
    """One random call of every entry point; an AssertionError where a checked number is wrong.

    The sanitizers watch all calls. To check a call by the plain formula costs as much as ten calls.
    """
    dtype = rng.choice([torch.float, torch.double])
    torch.set_num_threads(rng.choice([1, 1, 2, 5]))
    compiled.UNITS_EACH_THREAD = rng.choice([1, 1 << 12])
    compiled.MAX_EVALUATIONS = rng.choice([1, 15])  # sanitized loops are slow
    made = transformer(rng).to(dtype)
    shape = rng.choice([(0, 3), (3, 0), (1, 1), (1, 7), (5, 2), (37, 3), (131, 1), (2, 70)])
    x = odd(numbers(shape, dtype, rng), rng).requires_grad_()
    phi = odd(numbers((*shape, made.num_params), dtype, rng), rng).requires_grad_()
    with torch.no_grad():
        for matrix in made.parameters():
            matrix.copy_(numbers(tuple(matrix.shape), dtype, rng).nan_to_num(0).clamp(-100, 100))
    grads = [odd(torch.randn(shape, dtype=dtype), rng) for _ in "yl"]
    outputs = compiled.Compiled().evaluate(made.spec(), x, phi)
    gradients = torch.autograd.grad(outputs, [x, phi, *made.parameters()], grads)
    assert [g.shape for g in gradients[:2]] == [x.shape, phi.shape]
    x, phi = x.detach(), phi.detach()
    if not is_checked:
        inner = getattr(made, "inner", made)
        compiled.root(inner.spec(), x, phi[..., : inner.num_params])
        return
    check_values(made, x, phi, [t.detach() for t in outputs])
    check_gradients(made, x, phi, grads, gradients)
    check_roots(made, x, phi)


def exact(made: Any, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """The plain formula in float64."""
    return copy.deepcopy(made).double().plain(x.double(), phi.double())


def ordinary(made: Any, phi: Tensor) -> Tensor:
    """Lanes whose pseudo-parameters, and the matrices, are no problem of their own."""
    tame = all(float(m.detach().abs().max()) < 10 for m in made.parameters())
    return (phi.abs() < 10).all(-1) & tame


@torch.no_grad()
def check_values(made: Any, x: Tensor, phi: Tensor, found: list[Tensor]) -> None:
    """Right to a multiple of what rounding the inputs changes, for x of any size."""
    eps = torch.finfo(x.dtype).eps
    true = exact(made, x, phi)
    moved = [
        exact(made, x.double() * (1 + a * eps), phi.double() * (1 + b * eps))
        for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    plain = made.plain(x, phi)
    for i, got in enumerate(found):
        rounding = torch.stack([(other[i].double() - true[i]).abs() for other in (*moved, plain)])
        bound = 64 * (eps * (1 + true[i].abs()) + rounding.amax(0))
        held = ordinary(made, phi) & x.isfinite() & (true[i].abs() < 0.1 * torch.finfo(x.dtype).max)
        held &= bound.isfinite()
        wrong = held & ~((got - true[i]).abs() <= bound)
        assert not wrong.any(), ("value", "log-slope")[
            i
        ] + f" of {made}: {got[wrong]}, not {true[i][wrong]}"


def check_gradients(made: Any, x: Tensor, phi: Tensor, grads: Any, found: Any) -> None:
    """Right to rounding where all inputs are ordinary numbers: far out they are ill-conditioned."""
    matrices = list(made.parameters())
    if any(t.numel() and not float(t.detach().abs().max()) < 6 for t in (x, phi, *matrices)):
        return
    twin = copy.deepcopy(made).double()
    inputs = [x.double().requires_grad_(), phi.double().requires_grad_()]
    true = torch.autograd.grad(
        twin.plain(*inputs), [*inputs, *twin.parameters()], [g.double() for g in grads]
    )
    for got, expected in zip(found, true, strict=True):
        if got.numel():
            bound = 1e4 * torch.finfo(x.dtype).eps * (1 + float(expected.abs().max()))
            assert float((got - expected).abs().max()) <= bound, f"gradients of {made}"


@torch.no_grad()
def check_roots(made: Any, y: Tensor, phi: Tensor) -> None:
    """A root that is said to be one has a small residual."""
    made = getattr(made, "inner", made)
    phi = phi[..., : made.num_params]
    x, error = compiled.root(made.spec(), y, phi)
    residual = (compiled.Compiled().evaluate(made.spec(), x, phi)[0] - y).abs() / y.abs().clamp(
        min=1
    )
    assert (residual[error == 0] <= 8 * torch.finfo(y.dtype).eps ** 0.5).all(), f"root of {made}"
    assert not (error == 0)[y.isnan() | phi.isnan().any(-1)].any(), f"NaN in {made}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=int(os.environ.get("PYRO_NAF_FUZZ", 300)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", default=",".join(ISAS), help="names with commas between")
    parser.add_argument("--library", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.library:
        loaded = load(given.library)
        library.library = lambda: loaded
        rng = random.Random(given.seed)
        torch.manual_seed(given.seed)
        for i in range(given.calls):
            try:
                call(rng, is_checked=i % CHECKED_EVERY == 0)
            except AssertionError as error:
                print(f"call {i}: {error}", file=sys.stderr)
                return 1
        print(f"{given.calls} calls")
        return 0
    status = 0
    for isa in set(given.isa.split(",")) & set(supported()):
        with tempfile.TemporaryDirectory() as folder:
            done = run(build(isa, folder), given.calls, given.seed)
        print(isa, done.stdout, done.stderr[-3000:])
        status |= done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
