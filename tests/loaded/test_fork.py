"""After a fork: the child has no models, reads its own, and computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FORK = """
import os, signal, sys, torch, qkv
torch.set_num_threads(2)
translator, language = sys.argv[1:]
tasks = {
    "translate": lambda: qkv.translate("Open the file.", model=translator).text,
    "complete": lambda: qkv.complete("the", model=language, max_tokens=4).text,
    "in PyTorch": lambda: qkv.complete("the", model=language, max_tokens=4, dtype="float32", threads=2).text,
}
for name, run in tasks.items():
    before, held = run(), list(qkv.loaded())
    if not (pid := os.fork()):
        signal.alarm(60)
        ok = not qkv.loaded() and run() == before and len(qkv.loaded()) == 1
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0, name
    assert qkv.loaded() == held and run() == before, name
print("done")
"""

CHILDREN = """
import multiprocessing, sys, qkv
def run(_):
    return qkv.complete("the", model=sys.argv[1], max_tokens=4).text
if __name__ == "__main__":
    before = run(0)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(run, range(6)) == [before] * 6
    print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("script", [FORK, CHILDREN])
def test_a_child_computes(script: str, tiny_decoder: Path) -> None:
    given = ["help-en-de", str(tiny_decoder)] if script is FORK else [str(tiny_decoder)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", script, *given], capture_output=True, text=True, timeout=200, env=environment
    )
    assert (ran.stdout, ran.returncode) == ("done\n", 0), ran.stderr
