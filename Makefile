# Every task of the project. `make help` lists them; people and CI use the same ones.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the environment is made from; it is made anew when one of them changes.
SETUP := $(VENV)/.ready

.PHONY: help
help: ## List the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

.PHONY: setup
setup: $(SETUP) ## Make the virtual environment .venv with everything that developing needs

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[learner,atari,minatar]" --group dev
	@touch $@

.PHONY: train
train: setup ## Train CartPole-v1 until solved, with a learner and two actors on this machine
	$(BIN)/impala-learner --preset cartpole --actors 2

.PHONY: certs
certs: setup ## Make certs/: a token, an authority and certificates for HOSTS="NAME ..." by which actors call the learner
	$(BIN)/impala-certs --dir certs --hosts $(or $(HOSTS),localhost 127.0.0.1)

.PHONY: test
test: setup ## Run the tests
	$(BIN)/python -m pytest

.PHONY: model-test
model-test: setup ## Hold the learner's books against a model over SEQUENCES=10000 sequences of events from SEED=2 (some minutes)
	MODEL_SEQUENCES=$(or $(SEQUENCES),10000) MODEL_SEED=$(or $(SEED),2) \
	    $(BIN)/python -m pytest -q --durations 1 tests/test_accounting_model.py

.PHONY: check
check: lint types check-protos check-mutants check-manifests ## What CI runs besides the tests

.PHONY: lint
lint: setup ## Style and common mistakes (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: setup ## Types (mypy, strict)
	$(BIN)/mypy

.PHONY: format
format: setup ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: protos
protos: setup ## Generate the code of protos/impala.proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. protos/impala.proto

.PHONY: check-protos
check-protos: setup ## Check that the committed generated code is that of protos/impala.proto
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=$$folder --pyi_out=$$folder --grpc_python_out=$$folder protos/impala.proto && \
	for file in impala_pb2.py impala_pb2.pyi impala_pb2_grpc.py; do \
	    diff -u protos/$$file $$folder/protos/$$file || { echo "protos/$$file is stale: run make protos"; exit 1; }; \
	done

.PHONY: check-mutants
check-mutants: setup ## Check that every test is named by a mutant, and that no mutant has lost its line
	$(BIN)/python -m tests.mutants --list

.PHONY: check-manifests
check-manifests: setup ## Check deploy/kubernetes against the schemas of Kubernetes
	$(BIN)/python -m pytest -q tests/test_kubernetes.py

.PHONY: audit
audit: setup ## Look for known faults in the pinned dependencies and for risky code (needs PyPI's JSON data)
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --quiet bandit pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > .venv-audit/requirements.txt
	.venv-audit/bin/bandit --quiet --recursive --severity-level medium impala learner_server actor_client run_directory examples docker
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement .venv-audit/requirements.txt

.PHONY: mutants
mutants: setup ## Break each guarded line and see its test fail (slow)
	$(BIN)/python -m tests.mutants

.PHONY: browser-test
browser-test: setup ## Drive the status page in Chromium (CHROMIUM=/usr/bin/chromium); screenshots go to build/status-page
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group browser
	$(BIN)/python -m pytest -q -s tests/browser/check_status_page.py

.PHONY: fuzz
fuzz: setup ## Fuzz the codecs with a million messages, and a learner that trains with 100,000 (SEED=0); writes results/fuzz.json
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --group fuzz
	$(BIN)/python -m tests.fuzz.decode --messages 1000000 --seed $(or $(SEED),0) --output results/fuzz.json
	$(BIN)/python -m tests.fuzz.live --messages 100000 --seed $(or $(SEED),0) --output results/fuzz.json

.PHONY: bench
bench: setup .venv-peers/.ready ## Measure all of docs/performance.md, beside peers; writes benchmarks/results.json (an hour; the link of 100 Mbit/s takes root)
	-$(BIN)/python -m benchmarks.learn --name cartpole --preset cartpole --seeds 0 1 2 3 4 --at-least 475 --again
	-$(BIN)/python -m benchmarks.throughput --seconds 15 --output benchmarks/throughput.json --envs 256 --batch-size 512
	-$(BIN)/python -m benchmarks.throughput --seconds 15 --output benchmarks/waits-learner.json --preset atari-shallow --network nature
	-$(BIN)/python -m benchmarks.throughput --seconds 15 --output benchmarks/waits-actor.json --actors 1 --preset atari-shallow
	-$(BIN)/python -m benchmarks.compare --peer $(PEERS) --only cartpole breakout shallow --output benchmarks/compare.json
	-$(BIN)/python -m benchmarks.compare --peer $(PEERS) --only solve --output benchmarks/solve.json
	-$(PEERS) -m benchmarks.vtrace --output benchmarks/vtrace.json
	-$(BIN)/python -m benchmarks.wire --output benchmarks/wire.json
	-$(BIN)/python -m benchmarks.ingest --output benchmarks/ingest.json
	-$(BIN)/python -m benchmarks.scale --connections 4 512 --output benchmarks/scale.json
	-$(BIN)/python -m benchmarks.polls --output benchmarks/polls.json
	-$(BIN)/python -m benchmarks.recovery --output benchmarks/recovery.json
	-$(BIN)/python -m benchmarks.ingest --megabits 100 --at-least 62500 --output benchmarks/ingest-100-megabits.json
	$(BIN)/python -m benchmarks.summary

.PHONY: faults
faults: setup ## Break the network and stop actors, and see what it costs; writes benchmarks/faults.json (half an hour; takes root)
	$(BIN)/python -m benchmarks.faults --seed 0 --output benchmarks/faults.json

.PHONY: chaos
chaos: setup ## One run under 200 faults in half an hour, every step accounted for; writes benchmarks/chaos.json
	$(BIN)/python -m benchmarks.chaos --seed 0 --faults 200 --minutes 30 --output benchmarks/chaos.json

.PHONY: soak
soak: setup ## Two hours of actors that come and go: what learner and a long-lived actor hold; writes benchmarks/soak.json
	$(BIN)/python -m benchmarks.soak --hours 2 --seed 0 --output benchmarks/soak.json

PEERS = .venv-peers/bin/python

.venv-peers/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade "pip>=25.1" --constraint constraints.txt
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/peers/requirements.txt
	@touch $@

LEARN = $(BIN)/python -m benchmarks.learn

.PHONY: results
results: setup ## Train what docs/results.md and docs/primer.md report; goes on where it was; takes hours
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[box2d,mujoco]"
	-$(LEARN) --name acrobot --preset acrobot --at-least -90
	-$(LEARN) --name lunarlander --preset lunarlander --at-least 200
	-$(LEARN) --name pendulum --preset pendulum --at-least -250
	-$(LEARN) --name halfcheetah --preset halfcheetah --at-least 2000
	-$(LEARN) --name recall --preset recall --at-least 0.95
	-$(LEARN) --name recall-feed-forward --preset recall -- --lstm-size 0 --total-steps 600000
	-$(LEARN) --name minatar-breakout --preset minatar --at-least 18 --manner sampled -- --env MinAtar/Breakout-v1
	-$(LEARN) --name minatar-space-invaders --preset minatar --at-least 70 --manner sampled -- --env MinAtar/SpaceInvaders-v1
	-$(LEARN) --name minatar-freeway --preset minatar --at-least 35 --manner sampled -- --env MinAtar/Freeway-v1 --entropy-cost 0.005
	-$(LEARN) --name minatar-asterix --preset minatar --at-least 8 --manner sampled -- --env MinAtar/Asterix-v1
	-$(LEARN) --name minatar-seaquest --preset minatar --at-least 4 --manner sampled -- --env MinAtar/Seaquest-v1
	-$(LEARN) --name minatar-multitask --preset minatar-multitask --actors 4
	$(BIN)/python -m benchmarks.minimal
	$(BIN)/python -m benchmarks.ratios
	$(BIN)/python -m benchmarks.choices --seeds 0
	$(BIN)/python -m benchmarks.corrections

ATARI = $(LEARN) --preset atari-cpu --episodes 200 --manner sampled --manners sampled \
    --evaluate-flags=--threads=2 --evaluate-flags=--envs=25

.PHONY: atari
atari: setup .venv-peers/.ready ## Train on real Atari, and peers for as long; goes on where it was; takes a day and a half
	-$(ATARI) --name atari-pong --minutes 60 120 --at-least 18 19.5
	-$(ATARI) --name atari-breakout --minutes 90 --at-least 250 -- --env ALE/Breakout-v5 --total-steps 6400000
	-$(ATARI) --name atari-space-invaders --seeds 0 --minutes 60 -- --env ALE/SpaceInvaders-v5
	-$(ATARI) --name atari-seaquest --seeds 0 --minutes 60 -- --env ALE/Seaquest-v5
	-$(ATARI) --name atari-qbert --seeds 0 --minutes 60 -- --env ALE/Qbert-v5
	-$(ATARI) --name atari-multitask --seeds 0 --actors 3 -- --total-steps 4500000 --batch-size 6 \
	    --env ALE/Breakout-v5 ALE/Pong-v5 ALE/SpaceInvaders-v5
	$(BIN)/python -m benchmarks.atari_peers --peer $(PEERS) --games Pong Breakout --minutes 30 --seeds 0
	$(BIN)/python -m benchmarks.atari_peers --peer $(PEERS) --games Pong Breakout --minutes 30 --seeds 1 2 --algorithms ppo
	-$(BIN)/python -m benchmarks.ablations --wire
	$(BIN)/python -m benchmarks.ablations --seeds 0

.PHONY: determinism
determinism: setup ## Train five times in lockstep and once in a single process, and compare the weights bit for bit (minutes)
	$(BIN)/python -m benchmarks.determinism --repeats 5 --output results/determinism.json

.PHONY: figures
figures: setup ## Draw results/*.svg from results/*.json
	$(BIN)/python -m benchmarks.figures

.PHONY: docs
docs: setup ## Build the site of documents and API reference in build/site, and check its links; it needs no network
	rm -rf build/site
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet --conf-dir docs/site . build/site
	$(BIN)/python docs/site/check.py build/site

.PHONY: torn
torn: setup ## Kill a process 500 times while it writes checkpoints, and look for a whole one each time (some minutes)
	$(BIN)/python -m benchmarks.torn --kills 500 --seed 0 --output benchmarks/torn.json

.PHONY: hostile
hostile: setup ## Train beside attackers, one kind after the other; writes benchmarks/hostile.json (ten minutes)
	$(BIN)/python -m benchmarks.hostile --turns 3 --output benchmarks/hostile.json

.PHONY: monitoring-test
monitoring-test: setup ## Check rules and dashboard with a real Prometheus (needs `prometheus` and `promtool`; a minute or two)
	@command -v prometheus > /dev/null && command -v promtool > /dev/null || \
	    { echo "prometheus and promtool are needed on the path: Debian's package prometheus has both"; exit 1; }
	promtool check config docker/prometheus/prometheus.yml
	promtool test rules docker/prometheus/alerts_test.yml
	$(BIN)/python -m pytest -q -rs tests/test_prometheus.py tests/test_actor_figures.py \
	    tests/test_histogram.py tests/test_learner_histograms.py tests/test_monitoring.py tests/test_real_prometheus.py

.PHONY: compose-test
compose-test: ## Build the images, train with docker compose, scale, kill and restart (needs a Docker engine; some minutes)
	$(PYTHON) docker/compose_test.py

.PHONY: clean
clean: ## Remove the virtual environment and caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
