"""Where the weights that an option file names lie. Loads no torch: a teacher cache is read without it."""

from pathlib import Path

SHIPPED = Path('mtkd/pretrained')  # as option files name them, from the folder of a checkout
PACKAGE = Path(__file__).parents[1]  # what `mtkd` lies in: a checkout, or site-packages


def weights_path(path: str | Path) -> Path:
    """``path`` with ``~`` for the home folder; of a network that ships, ``mtkd/pretrained/...``, that of the package.

    A file by that name in the working directory goes first.
    """
    given = Path(path).expanduser()
    shipped = PACKAGE / given
    return shipped if given.parent == SHIPPED and not given.exists() and shipped.is_file() else given
