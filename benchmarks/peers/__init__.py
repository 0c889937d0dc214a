"""What this project is measured against, each in an environment of its own; see `benchmarks.compare`."""
