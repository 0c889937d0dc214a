"""The contract, `impala.proto`, and the code generated from it by `make protos`."""
