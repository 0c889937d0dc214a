#!/bin/sh
# Before learner and actors start: a run directory that the learner can write to, certificates, and a token. Runs as root, once
# for every `docker compose up`, and gives each side what it needs of them and nothing else. A token or an authority that is
# there stays.
set -eu
umask 077
install -d -o impala -g impala /runs
if [ -n "${IMPALA_TOKEN:-}" ]; then
    printf '%s\n' "$IMPALA_TOKEN" > /secrets/authority/token
fi
impala-certs --dir /secrets/authority --hosts learner localhost
cd /secrets/authority
cp token learner.pem learner-key.pem /secrets/learner/
cp token ca.pem /secrets/actor/
chown impala:impala /secrets/learner/* /secrets/actor/*
