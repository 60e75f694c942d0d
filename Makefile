.PHONY: test quickstart study options docs format dist

test:            ## environment if missing, ruff, pytest with coverage
	bash scripts/test.sh

quickstart:      ## distil a student from the teachers that ship
	bash scripts/quickstart.sh

study:           ## every method on three small students, three to five seeds: hours on two cores
	python scripts/run_study.py options/study/small_x4.yml

docs:            ## the site, in site/
	mkdocs build --strict

options:         ## write options/ from the templates
	python scripts/make_options.py

format:
	ruff format . && ruff check --fix .

dist:            ## wheel and sdist
	python setup.py -q sdist && python -m pip wheel --no-deps --no-build-isolation -w dist .
