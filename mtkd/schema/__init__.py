"""The schema of an option file: what each section may say, read from the tables and signatures that the code uses.

``problems.problems(options)`` finds every mistake at once, ``reader.read(path)`` says in which line each stands,
``json_schema.json_schema()`` is the same for editors.
"""
