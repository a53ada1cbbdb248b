# Everything on a machine with Python 3.11+ and make:
#   make demo    train, evaluate, score, verify and report on synthetic data
#   make test    the test suite, two files at a time        make check   lint and types
#   make proof   kills in a fake cluster, a server that fails, abuse; results in proofs/results/;
#                DATA=folder, where magnetic_tile/ and mvtec_ad/ lie, adds the same bits everywhere
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= demo
DATA ?= data

.PHONY: demo test proof check setup clean
.DELETE_ON_ERROR:

setup: $(READY)

# torch comes first, by its exact pin: that takes the CPU build where one is on hand, and keeps
# the others from asking for any other build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/igd-ray demo --out $(DEMO)

test: $(READY)
	bash tests/debian-packages.sh
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

proof: $(READY)
	$(BIN)/python proofs/train_chaos.py --rounds 5
	$(BIN)/python proofs/train_chaos.py --rounds 2 --trainer always --seed 1 \
	  --out proofs/results/train_chaos_trainers.json
	PYTHONPATH=tests $(BIN)/python proofs/score_chaos.py --images 60 --steps 30 \
	  --kinds driver,step,worker,stopped,node,storage,input,schedulers,stale
	PYTHONPATH=tests $(BIN)/python proofs/score_chaos.py --kinds head,signal,disk --rounds 2 \
	  --out proofs/results/score_chaos_signals.json
	$(BIN)/python proofs/abuse.py
	PYTHONPATH=tests $(BIN)/python proofs/serve_chaos.py $(DATA) \
	  --kinds parity,many,replica,scorer,ingress,promotion
	PYTHONPATH=tests $(BIN)/python proofs/serve_chaos.py --kinds stop --rounds 5 \
	  --out proofs/results/serve_chaos_stop.json
	@if [ -d "$(DATA)/magnetic_tile" ]; then \
	  PYTHONPATH=tests $(BIN)/python proofs/containers.py "$(DATA)"; \
	else \
	  echo "no $(DATA)/magnetic_tile: proofs/containers.py is left out; give DATA=folder"; \
	fi

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
