"""Fuzzing: what comes over the wire or from the disk, broken in every way that pays, against what reads it.

python -m tests.fuzz.decode    the codecs and the servicer's checks, in this process; coverage-guided where atheris is installed
python -m tests.fuzz.live      a learner process that trains meanwhile
"""
