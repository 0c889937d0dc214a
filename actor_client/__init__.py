"""The actor as a gRPC client: runs environments with the learner's weights, sends unrolls; and evaluation of a finished run."""
