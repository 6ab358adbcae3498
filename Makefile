# make demo   fine-tunes of the embedded model and a report, within 6 minutes on two cores
# make test   the tests, within 12 minutes on two cores
# make landscapes   the figures of docs/landscape.md, some 10 to 15 minutes on two cores; needs Chrome or Chromium
# make lint   ruff, and mypy on an installed build
# Each makes .venv where it is missing. After that nothing here needs the network.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo landscapes test lint clean
.NOTPARALLEL: demo landscapes

# --- demo ------------------------------------------------------------------------------
# The commands a user would type. A run that is already there is resumed, which for a
# finished one means "nothing to do": an interrupted demo goes on where it stopped.
# More seeds make a stronger statement: make demo SEEDS="0 1 2 3". Small matrices run
# faster on one thread than on two.
DEMO := runs/demo
SEEDS := 0
FLAGS := --max-steps 200 --threads 1
careless := --lr 4e-4
careful := --lr 2e-5
ema-shadow := $(careless) --method ema:eta=0.25
ema-feedback := $(careless) --method ema:eta=0.25,mode=feedback
lr-matched := --lr 1e-4
DEMO_RUNS := $(foreach seed,$(SEEDS),$(foreach run,careless careful ema-shadow ema-feedback lr-matched,$(run)-$(seed)))

demo: $(DEMO_RUNS:%=demo-%)
	$(BIN)/geomsafe analyze $(DEMO_RUNS:%=$(DEMO)/%) --out $(DEMO)/report

demo-%: $(INSTALLED)
	@if [ -f $(DEMO)/$*/run.json ]; then set -x; $(BIN)/geomsafe train --resume $(DEMO)/$*; \
	else set -x; $(BIN)/geomsafe train $($(call name,$*)) $(FLAGS) --seed $(call seed,$*) --out $(DEMO)/$*; fi

# ema-shadow-3 is run ema-shadow with seed 3.
seed = $(lastword $(subst -, ,$1))
name = $(patsubst %-$(call seed,$1),%,$1)

# --- landscapes ------------------------------------------------------------------------
LAND := runs/landscapes
LAND_RUNS := $(LAND)/baseline $(LAND)/ema-feedback
LAND_SCORE := --prompts 30 --max-new-tokens 24 --workers 2

landscapes: $(INSTALLED) land-baseline land-ema-feedback
	$(BIN)/geomsafe landscape $(LAND_RUNS) --name lines $(LAND_SCORE) --score refusal,asr,utility,sham \
	  --lines finetune,ema,alignment,safety-gradient,utility-gradient,conflict,hessian,random:count=10 --reach 0.64
	$(BIN)/geomsafe landscape $(LAND_RUNS) --name plane $(LAND_SCORE) --score refusal,asr,utility \
	  --axes finetune,safety-gradient --grid 13x13
	$(BIN)/geomsafe landscape $(LAND_RUNS) --name trajectory $(LAND_SCORE) --score asr,utility \
	  --axes pca:component=1,pca:component=2 --reach 0.12 --tolerance 0.015
	$(BIN)/geomsafe landscape $(LAND_RUNS) --visage 10 --max-new-tokens 24 --workers 2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[images]"
	$(BIN)/geomsafe analyze $(LAND_RUNS) --out $(LAND)/report --images docs/landscape --which "landscape-*" --image-format png

land-%: $(INSTALLED)
	@if [ -f $(LAND)/$*/run.json ]; then set -x; $(BIN)/geomsafe train --resume $(LAND)/$*; \
	else set -x; $(BIN)/geomsafe train $(careless) $(FLAGS) --curve-points 6 --eval-limit 40 --probe-schedule off \
	  --method ema:eta=0.25$(if $(findstring feedback,$*),$(comma)mode=feedback) --out $(LAND)/$*; fi

comma := ,

# --- checks ----------------------------------------------------------------------------
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

# mypy does not see an editable install of mapped packages, so it checks an installed build.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/typed .
	cd build/typed && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p geomsafe

# constraints.txt names the tested versions; it also keeps pip from fetching CUDA builds of torch.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
