"""The C++ loops under sanitizers; PYRO_NAF_FUZZ=10000 sets the calls of each instruction set."""

from __future__ import annotations

import os
from pathlib import Path

import fuzz
import pytest

#: Random calls, each of the forward loop, its gradient and the inverse.
CALLS = 500


@pytest.mark.skipif(not fuzz.supported(), reason="needs g++ with libasan and libubsan, on x86")
@pytest.mark.parametrize("isa", fuzz.ISAS)
def test_random_calls_are_right_and_without_a_report_of_the_sanitizers(
    isa: str, tmp_path: Path
) -> None:
    if isa not in fuzz.supported():
        pytest.skip(f"this processor has no {isa}")
    calls = int(os.environ.get("PYRO_NAF_FUZZ", 0))
    if not calls and isa != fuzz.supported()[-1]:
        pytest.skip("PYRO_NAF_FUZZ is not set: only the widest vectors")
    calls = calls or CALLS
    done = fuzz.run(fuzz.build(isa, tmp_path), calls, seed=0)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{calls} calls\n"
