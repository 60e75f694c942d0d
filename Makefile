.PHONY: test quickstart options format dist

test:            ## environment if missing, ruff, pytest with coverage
	bash scripts/test.sh

quickstart:      ## train three small teachers, the aggregator and a student
	bash scripts/quickstart.sh

options:         ## write options/ from the templates
	python scripts/make_options.py

format:
	ruff format . && ruff check --fix .

dist:            ## wheel and sdist
	python setup.py -q sdist && python -m pip wheel --no-deps --no-build-isolation -w dist .
