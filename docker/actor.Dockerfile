# An actor: what it needs and no more. Build from the repository's root:
#     docker build -f docker/actor.Dockerfile -t impala-actor .
# Build arguments: as for learner.Dockerfile.
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv --without-pip /opt/impala
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN python requirements.py "$EXTRAS" > requirements.txt \
 && pip --python /opt/impala install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt -r requirements.txt \
 && cd /opt/impala/lib/python3.11/site-packages/torch && rm -rf test include bin/test_*
COPY README.md LICENSE ./
COPY protos protos
COPY impala impala
COPY run_directory run_directory
COPY actor_client actor_client
COPY learner_server learner_server
RUN pip --python /opt/impala install --no-deps .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --create-home impala \
 && install -d -o impala -g impala /secrets
COPY --from=build /opt/impala /opt/impala
ENV PATH=/opt/impala/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/impala
EXPOSE 50052
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["impala-health", "127.0.0.1:50052"]
ENTRYPOINT ["impala-actor", "--health", "0.0.0.0:50052"]
CMD ["--help"]
