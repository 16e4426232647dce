# make train, make test: everything else is set up by these two.
PYTHON ?= python3
CONSTRAINTS ?= -c constraints.txt
ARGS ?=
BIN = .venv/bin

# another CONSTRAINTS than .venv was made with: it is set up again, and once more when they are left out
ifneq ($(CONSTRAINTS),$(shell cat .venv/ready 2> /dev/null))
.PHONY: .venv/ready
endif

.PHONY: train test setup lint format types bench bench-network bench-tuning golden faults figure quality clean

train: .venv/ready ## run the main job; overrides: make train ARGS="model=rms strategy.clock.interval=16"
	$(BIN)/python train.py model=ln_ticks trainer.devices=4 $(ARGS)

test: .venv/ready ## run every test, on two processors
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

setup: .venv/ready ## create .venv and install the pinned dependencies

# torch first, at its pin: a range would take the newest build with several GB of CUDA packages
.venv/ready: pyproject.toml $(filter-out -c,$(CONSTRAINTS))
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), 'Python 3.11 to 3.13 is needed'"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e ".[dev]"
	echo "$(CONSTRAINTS)" > $@

lint: .venv/ready ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready ## measure; nothing else should run on the machine
	$(BIN)/python -m tests.benchmarks.bench $(ARGS)

bench-network: .venv/bench ## 4 workers on a slow network, beside what others offer; needs root and hours, ARGS="--help"
	$(BIN)/python -m tests.benchmarks.network $(ARGS)

.venv/bench: .venv/ready
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e ".[bench]"
	touch $@

figure: .venv/ready ## the README's first figure again, from the runs of docs/evidence.md
	$(BIN)/ticks report docs/evidence/intervals.csv x=bytes_sent_per_worker out=docs/evidence/frontier.png

bench-tuning: .venv/ready ## what fine-tuning costs beside all of it and beside LoRA (5 minutes)
	$(BIN)/python -m tests.benchmarks.tuning $(ARGS)

golden: .venv/ready ## whether any preset computes another number than it did (3 minutes); ARGS=--write: as it is now
	$(BIN)/python -m tests.golden $(ARGS)

faults: .venv/ready ## signals, full disks, damaged files, mutated configurations: an hour; ARGS="--trials 1000", "--help"
	$(BIN)/python -m tests.faults $(ARGS)

quality: .venv/ready ## DDP and its frugal likes, three seeds, AdamW and Muon (80 minutes on 2 cores): the README's loss table
	$(BIN)/ticks sweep configs/sweep/quality.yaml logger=csv
	$(BIN)/ticks report logs/sweeps/quality against=strategy=ddp

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
