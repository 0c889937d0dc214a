"""A process that holds a channel or a server may fork: an environment's workers, or a program that is started with `preexec_fn`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A fresh process: gRPC reads its settings when it is imported. Each child says how many threads it has.
FORKS = """
import os
import {imported}
import concurrent.futures
import grpc

server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
channel = grpc.insecure_channel(f"127.0.0.1:{{port}}")
grpc.channel_ready_future(channel).result(60)
for _ in range(50):
    child = os.fork()
    if child == 0:
        os._exit(len(os.listdir("/proc/self/task")))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("imported", ["actor_client.client", "learner_server.server"])
def test_a_forked_child_has_none_of_grpcs_threads(imported: str) -> None:
    command = [sys.executable, "-c", FORKS.format(imported=imported)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    assert output.stdout.split() == ["1"] * 50
