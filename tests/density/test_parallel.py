"""Two processes reach the likelihood of one, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys, torch
from pathlib import Path
from pyro_naf.density import FlowDensity, parallel

def threads():
    tasks = Path("/proc/self/task")
    names = [path.read_text().strip() for path in tasks.glob("*/comm")]
    return [name for name in names if "gloo" in name]

torch.set_num_threads(1)
parallel.start()
torch.manual_seed(0)
x = torch.randn(403, 2).exp()
density = FlowDensity(2, architecture="maf-dsf-1", hidden_dims=[8], hidden_units=4)
density.fit(x, seed=0, max_steps=60, batch_size=64, evaluate_every=20, progress=False)

class Killed(BaseException):
    pass

def resumed(name, seed, stop_at=None):
    # Every process draws dropout of its own, and the constructor permutations.
    def stop(entry):
        if entry["step"] == stop_at:
            raise Killed

    torch.manual_seed(seed)
    chosen = FlowDensity(2, architecture="maf-affine-1", linear="lu", hidden_dims=[8], dropout=0.3)
    path = Path(sys.argv[1]) / f"{name}-{parallel.size()}.pt"
    kept = {"checkpoint": path, "checkpoint_seconds": 0, "resume": seed == 2}
    options = {"max_steps": 12, "evaluate_every": 4, "batch_size": 64, "on_evaluation": stop}
    try:
        chosen.fit(x, seed=0, progress=False, **kept, **options)
    except Killed:
        pass
    if parallel.size() > 1:
        torch.distributed.barrier()
    return list(chosen.state_dict().values())

whole = resumed("whole", 1)
resumed("killed", 1, stop_at=8)
assert all(map(torch.equal, whole, resumed("killed", 2))), parallel.rank()

if parallel.rank() == 0:
    history = [(e["step"], e["validation"]) for e in density.history.evaluations]
    weights = [p.tolist() for p in density.parameters()]
    print(json.dumps([parallel.size(), density.score(x), history, weights]))
parallel.stop()
# One that is left, and drops its tensors while Python exits, aborts the process.
assert threads() == [], threads()
"""


def run(path: Path, *launcher: str) -> list:
    command = [sys.executable, *launcher, str(path), str(path.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_two_processes_reach_the_likelihood_of_one(tmp_path: Path) -> None:
    path = tmp_path / "fit.py"
    path.write_text(SCRIPT)
    alone = run(path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together = run(path, *launcher)
    assert alone[0] == 1 and together[0] == 2
    assert abs(alone[1] - together[1]) < 1e-4
    for (step, one), (same_step, two) in zip(alone[2], together[2], strict=True):
        assert step == same_step and abs(one - two) < 1e-4

    def flat(values) -> list[float]:
        return [v for p in values for v in (flat(p) if isinstance(p, list) else [p])]

    gaps = [abs(a - b) for a, b in zip(flat(alone[3]), flat(together[3]), strict=True)]
    assert max(gaps) < 1e-3
