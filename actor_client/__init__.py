"""The actor as a gRPC client: runs environments with the learner's weights, sends unrolls; and evaluation of a finished run."""

import os

# gRPC reads it when it is imported. With its handlers on, every child that is forked starts gRPC's threads anew, and in a few of a
# hundred they crash it before it gets to its program (grpc/grpc issue 43055). No child here uses gRPC before it is a program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
