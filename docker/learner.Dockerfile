# The learner. Build from the repository's root:
#     docker build -f docker/learner.Dockerfile -t impala-learner .
# Build arguments:
#     TORCH_INDEX  a package index to take torch from, for example PyTorch's own of CPU builds, a tenth of the size of the CUDA
#                  build that the default index has for x86-64. Empty: the default index.
#     EXTRAS       environments besides Gymnasium's own, comma-separated: atari, minatar, mujoco, box2d.
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv --without-pip /opt/impala
# What is installed changes seldom, the source often: dependencies are a layer of their own. Of torch, what tests it and what
# extensions compile against stays behind.
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN python requirements.py "learner,$EXTRAS" > requirements.txt \
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
 && install -d -o impala -g impala /runs /secrets /secrets/authority /secrets/learner /secrets/actor
COPY --from=build /opt/impala /opt/impala
ENV PATH=/opt/impala/bin:$PATH PYTHONUNBUFFERED=1
# A number, so that Kubernetes sees that it is not root.
USER 10001:10001
WORKDIR /home/impala
EXPOSE 50051 50052
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["impala-health", "127.0.0.1:50052"]
# The last --health on a command line counts.
ENTRYPOINT ["impala-learner", "--health", "0.0.0.0:50052"]
CMD ["--help"]
