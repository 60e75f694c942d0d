"""Every option file of the project, from templates; published settings stand once, here."""

from option_templates.baselines import baselines
from option_templates.networks import SCALES
from option_templates.quickstart import quickstart
from option_templates.shipped_teachers import shipped_teachers
from option_templates.two_stages import two_stages


def all_files() -> dict[str, str]:
    """Every option file: name below options/ -> text."""
    files = quickstart() | shipped_teachers()
    for scale in SCALES:
        files |= two_stages(scale) | baselines(scale)
    return files
