"""The learner as a gRPC service: takes unrolls in, trains, hands weights out."""
